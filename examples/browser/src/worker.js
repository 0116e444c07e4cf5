// Loads the models and runs them one after the other, so that the page stays responsive and neither disturbs the other.
import {
  AutoModelForSpeechSeq2Seq,
  AutomaticSpeechRecognitionPipeline,
  AutoProcessor,
  AutoTokenizer,
  env,
} from "@huggingface/transformers";
import wasm from "onnxruntime-web/ort-wasm-simd-threaded.asyncify.wasm?url";
import { RATE } from "./audio.js";

// From this site: transformers.js would take the file from a CDN.
env.backends.onnx.wasm.wasmPaths = { wasm };

const loaded = new Map(); // which of the two -> { key, recognizer, bytes }

/** What went wrong; ONNX Runtime throws numbers when it runs out of memory. */
function reason(error) {
  return error instanceof Error ? error.message : `ONNX Runtime stopped (${error}); there may be too little memory`;
}

/** The recognizer of a folder of this site or of the Hub; the one before it is freed. */
async function load(which, id, { site, device, dtype }) {
  const key = JSON.stringify([id, device, dtype]);
  if (loaded.get(which)?.key === key) return loaded.get(which);
  await loaded.get(which)?.recognizer.dispose();
  loaded.delete(which);

  const here = id.startsWith("models/");
  env.allowLocalModels = here;
  env.allowRemoteModels = !here;
  // A folder of this site may have been exported anew. The browser asks the server whether it has, this cache does not.
  env.useBrowserCache = !here;

  if (here && !(await fetch(`${site}${id}/config.json`)).ok) {
    throw new Error(`There is no ${id}/config.json on this site; README.md says how to make such a folder.`);
  }

  const sizes = new Map();
  const options = {
    device,
    dtype,
    local_files_only: here,
    progress_callback({ status, file, loaded, total }) {
      if (status !== "progress") return;
      sizes.set(file, [loaded, total]);
      const [done, all] = [0, 1].map((part) => [...sizes.values()].reduce((sum, size) => sum + size[part], 0));
      postMessage({ which, state: "loading", done, all });
    },
  };
  // For a folder of this site transformers.js must be told a path here, or it looks for no tokenizer, and a whole
  // address below, or it fetches every file twice, to know the sizes beforehand; so does pipeline().
  env.localModelPath = site;
  const parts = [AutoTokenizer, AutoProcessor].map((part) => part.from_pretrained(id, options));
  const [tokenizer, processor] = await Promise.all(parts);
  env.localModelPath = location.origin + site;
  const model = await AutoModelForSpeechSeq2Seq.from_pretrained(id, options);
  const recognizer = new AutomaticSpeechRecognitionPipeline({
    task: "automatic-speech-recognition",
    tokenizer,
    processor,
    model,
  });
  const bytes = [...sizes.values()].reduce((sum, [done]) => sum + done, 0);
  loaded.set(which, { key, recognizer, bytes });
  return loaded.get(which);
}

async function transcribe(model, samples, language) {
  const { recognizer, bytes } = model;
  const window = recognizer.processor.feature_extractor.config.chunk_length;
  const options = {
    // A model for English only refuses to be told a language.
    ...(recognizer.model.generation_config.is_multilingual && { language, task: "transcribe" }),
    return_timestamps: true,
    chunk_length_s: window,
  };
  // The browser compiles as it runs: what comes first would look slow, and the stock model comes first.
  if (!model.warm) await recognizer(samples.subarray(0, window * RATE), options);
  model.warm = true;
  const begin = performance.now();
  const { text, chunks } = await recognizer(samples, options);
  return { text: text.trim(), segments: chunks, seconds: (performance.now() - begin) / 1000, bytes };
}

onmessage = async ({ data: { models, samples, language, ...options } }) => {
  const ready = [];
  const attempt = async (which, step) => {
    try {
      await step();
    } catch (error) {
      console.error(error);
      postMessage({ which, state: "failed", message: reason(error) });
    }
  };
  for (const [which, id] of Object.entries(models)) {
    postMessage({ which, state: "loading", done: 0, all: 0 });
    await attempt(which, async () => {
      ready.push([which, await load(which, id, options)]);
      postMessage({ which, state: "loaded" });
    });
  }
  for (const [which, model] of ready) {
    postMessage({ which, state: "running" });
    await attempt(which, async () => {
      postMessage({ which, state: "done", ...(await transcribe(model, samples, language)) });
    });
  }
  postMessage({ state: "finished" });
};
