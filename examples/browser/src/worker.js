// Loads the models and runs them one after the other. A worker keeps the page responsive meanwhile.
import {
  AutoModelForSpeechSeq2Seq,
  AutomaticSpeechRecognitionPipeline,
  AutoProcessor,
  AutoTokenizer,
  env,
} from "@huggingface/transformers";
import wasm from "onnxruntime-web/ort-wasm-simd-threaded.asyncify.wasm?url";
import { RATE } from "./audio.js";

// Served from this site; by default, transformers.js downloads the file from a CDN.
env.backends.onnx.wasm.wasmPaths = { wasm };

const loaded = new Map(); // "stock" or "compressed" -> { key, recognizer, bytes }

/** Returns the message of an error. ONNX Runtime throws numbers when it runs out of memory. */
function errorMessage(error) {
  if (error instanceof Error) return error.message;
  return `ONNX Runtime failed (${error}), probably out of memory; try a smaller model or int8 weights.`;
}

/** Loads a model from this site or from the Hub and frees the one that it replaces. */
async function load(which, id, { site, device, dtype }) {
  const key = JSON.stringify([id, device, dtype]);
  if (loaded.get(which)?.key === key) return loaded.get(which);
  await loaded.get(which)?.recognizer.dispose();
  loaded.delete(which);

  const local = id.startsWith("models/");
  env.allowLocalModels = local;
  env.allowRemoteModels = !local;
  // The cache of transformers.js would not notice that a model on this site was exported again; the HTTP cache does.
  env.useBrowserCache = !local;

  if (local && !(await fetch(`${site}${id}/config.json`)).ok) {
    throw new Error(`${id}/config.json was not found on this site; README.md explains how to export a model.`);
  }

  const sizes = new Map();
  const options = {
    device,
    dtype,
    local_files_only: local,
    progress_callback({ status, file, loaded, total }) {
      if (status !== "progress") return;
      sizes.set(file, [loaded, total]);
      const [done, all] = [0, 1].map((index) => [...sizes.values()].reduce((sum, size) => sum + size[index], 0));
      postMessage({ which, state: "loading", done, all });
    },
  };
  // For models on this site, transformers.js only finds the tokenizer if localModelPath is a path, but fetches every
  // model file twice (to get the sizes first) unless it is a full URL. pipeline() fetches the files twice as well.
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
    // English-only models reject a language.
    ...(recognizer.model.generation_config.is_multilingual && { language, task: "transcribe" }),
    return_timestamps: true,
    chunk_length_s: window,
  };
  // Warm up: the first run includes compilation, which would be counted against the stock model.
  if (!model.warm) await recognizer(samples.subarray(0, window * RATE), options);
  model.warm = true;
  const start = performance.now();
  const { text, chunks } = await recognizer(samples, options);
  return { text: text.trim(), segments: chunks, seconds: (performance.now() - start) / 1000, bytes };
}

onmessage = async ({ data: { models, samples, language, ...options } }) => {
  const ready = [];
  const attempt = async (which, step) => {
    try {
      await step();
    } catch (error) {
      console.error(error);
      postMessage({ which, state: "failed", message: errorMessage(error) });
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
