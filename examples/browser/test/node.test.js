// Compares transformers.js in Node with transformers in Python, on the exported models.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { env, pipeline } from "@huggingface/transformers";

const here = new URL(".", import.meta.url).pathname;
const expected = JSON.parse(readFileSync(`${here}made/expected.json`));
env.allowRemoteModels = false;
env.localModelPath = `${here}../public/`;

function samples(clip) {
  const bytes = readFileSync(`${here}made/${clip}.f32`);
  return new Float32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4);
}

const plain = (chunks) => chunks.map(({ text, timestamp }) => [text, ...timestamp]);

for (const which of ["stock", "compressed"]) {
  test(`the ${which} model gives the same transcripts in Node as in Python`, async (t) => {
    const recognizer = await pipeline("automatic-speech-recognition", `models/${which}`, { dtype: "fp32" });
    t.after(() => recognizer.dispose());
    const options = {
      language: "en",
      task: "transcribe",
      chunk_length_s: recognizer.processor.feature_extractor.config.chunk_length,
    };
    for (const [clip, { [which]: wanted }] of Object.entries(expected)) {
      await t.test(`segments of ${clip}`, async () => {
        const found = await recognizer(samples(clip), { ...options, return_timestamps: true });
        if (which === "stock" || !clip.startsWith("longform")) {
          assert.equal(found.text, wanted.segments.text);
          assert.deepEqual(plain(found.chunks), plain(wanted.segments.chunks));
        } else {
          // transformers.js and transformers merge overlapping windows differently if a timestamp is uncertain.
          assert.ok(found.text.split(" ").length > 30, found.text);
        }
      });
      if (clip.startsWith("longform")) continue; // Python repeats the words in overlaps.
      await t.test(`words of ${clip}`, async () => {
        const found = await recognizer(samples(clip), { ...options, return_timestamps: "word" });
        assert.equal(found.text, wanted.words.text);
        const words = plain(found.chunks);
        // transformers.js 4.3.1 shifts timestamps by one word: its start of a word is the end of that word in Python.
        // The last word has no successor. The tolerance is needed because transformers.js also aligns the padding.
        for (const [index, [word, start]] of words.slice(0, -1).entries()) {
          const [wantedWord, , end] = plain(wanted.words.chunks)[index];
          assert.equal(word, wantedWord);
          assert.ok(Math.abs(start - end) < 0.2, `${word} in ${clip}: ${start}, expected ${end}`);
        }
      });
    }
  });
}
