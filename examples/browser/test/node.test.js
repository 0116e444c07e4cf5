// transformers.js on the exported folders, in Node, against transformers in Python.
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
  test(`the ${which} model in Node writes what it writes in Python`, async (t) => {
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
          // Where two windows overlap, the two programs do not join them alike when the model is unsure of a time.
          assert.ok(found.text.split(" ").length > 30, found.text);
        }
      });
      if (clip.startsWith("longform")) continue; // Python writes words of overlaps twice.
      await t.test(`words of ${clip}`, async () => {
        const found = await recognizer(samples(clip), { ...options, return_timestamps: "word" });
        assert.equal(found.text, wanted.words.text);
        const words = plain(found.chunks);
        // transformers.js 4.3.1 gives every word the time of the next one: its beginning is where the word ends in
        // Python. It also looks at the silence after the clip, hence the tolerance; the last word has no next one.
        for (const [at, [word, begin]] of words.slice(0, -1).entries()) {
          const [wantedWord, , end] = plain(wanted.words.chunks)[at];
          assert.equal(word, wantedWord);
          assert.ok(Math.abs(begin - end) < 0.2, `${word} of ${clip}: ${begin} for ${end}`);
        }
      });
    }
  });
}
