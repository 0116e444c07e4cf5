// The page: passes the user's choices to the worker and shows its results.
import { decode, RATE, record } from "./audio.js";
import { languages } from "./languages.js";

const TITLES = { stock: "Stock", compressed: "Compressed" };
const find = (id) => document.getElementById(id);
const form = find("form");
const url = new URL(location.href);

let samples; // the clip
let busy = false;
let stop; // stops the current recording; undefined if there is none
let worker;
const outcomes = {};

const formatNumber = (value, digits) =>
  value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
// Whisper may omit a timestamp, which is then null.
const formatTime = (seconds) => (seconds === null ? "–" : formatNumber(seconds, 2));
const formatSize = (bytes) => `${formatNumber(bytes / 1e6, 1)} MB`;

function setStatus(text) {
  find("status").textContent = text;
}

function showError(error) {
  if (error) console.error(error);
  find("error").textContent = error?.message ?? "";
}

/** Enables and disables the controls according to the current state. */
function updateControls() {
  find("transcribe").disabled = !samples || busy || Boolean(stop);
  find("file").disabled = busy || Boolean(stop);
  find("record").disabled = busy;
  find("record").textContent = stop ? "Stop recording" : "Record";
}

// The clip

async function loadClip(blob, name) {
  showError();
  samples = undefined;
  const player = find("player");
  URL.revokeObjectURL(player.src);
  player.hidden = true;
  find("clip").textContent = "No clip selected.";
  try {
    samples = await decode(blob);
    player.src = URL.createObjectURL(blob);
    player.hidden = false;
    find("clip").textContent = `${name}, ${formatNumber(samples.length / RATE, 1)} seconds`;
    setStatus("Clip ready.");
  } catch (error) {
    setStatus("");
    showError(error);
  }
  updateControls();
}

find("file").addEventListener("change", ({ target: { files } }) => {
  if (files.length) loadClip(files[0], files[0].name);
});

find("record").addEventListener("click", async () => {
  showError();
  try {
    if (stop) {
      const end = stop;
      stop = undefined;
      find("file").value = "";
      await loadClip(await end(), "Recording");
    } else {
      stop = await record();
      setStatus("Recording…");
    }
  } catch (error) {
    showError(error);
  }
  updateControls();
});

// The results

/** Adds the result section of one model to the page. */
function addPanel(which) {
  const section = find("result").content.cloneNode(true).firstElementChild;
  const heading = section.querySelector("h2");
  heading.textContent = TITLES[which];
  heading.id = `${which}-heading`;
  section.id = `${which}-result`;
  section.setAttribute("aria-labelledby", heading.id);
  find("results").append(section);
  return section;
}

const panels = Object.fromEntries(Object.keys(TITLES).map((which) => [which, addPanel(which)]));

function query(which, selector) {
  return panels[which].querySelector(selector);
}

const states = {
  loading({ which, done, all }) {
    query(which, ".loading").hidden = false;
    query(which, "progress").value = all ? done / all : 0;
    query(which, ".size").textContent = all ? `${formatSize(done)} of ${formatSize(all)}` : "Loading…";
    if (!all) setStatus(`Loading the ${which} model…`);
  },
  loaded({ which }) {
    query(which, ".loading").hidden = true;
  },
  running({ which }) {
    setStatus(`Transcribing with the ${which} model…`);
  },
  done({ which, text, segments, seconds, bytes }) {
    outcomes[which] = { text, seconds, bytes };
    query(which, ".text").textContent = text || "(no speech detected)";
    query(which, ".text").lang = find("language").value;
    query(which, ".seconds").textContent = formatNumber(seconds, 2);
    query(which, ".factor").textContent = formatNumber(samples.length / RATE / seconds, 2);
    query(which, ".files").textContent = formatSize(bytes);
    query(which, "tbody").replaceChildren(
      ...segments.map(({ timestamp: [from, to], text: words }) => {
        const row = document.createElement("tr");
        for (const value of [formatTime(from), formatTime(to), words.trim()]) {
          row.insertCell().textContent = value;
        }
        row.lastElementChild.lang = find("language").value;
        return row;
      }),
    );
    query(which, ".outcome").hidden = false;
  },
  failed({ which, message }) {
    query(which, ".loading").hidden = true;
    query(which, ".error").textContent = `The ${which} model failed: ${message}`;
  },
  finished() {
    const { stock, compressed } = outcomes;
    setStatus(stock || compressed ? "Done." : "Both models failed.");
    if (stock && compressed) {
      const comparison = stock.text === compressed.text ? "The transcripts are identical" : "The transcripts differ";
      const speed = formatNumber(stock.seconds / compressed.seconds, 2);
      const size = formatNumber((100 * compressed.bytes) / stock.bytes, 0);
      find("summary").textContent =
        `${comparison}. The compressed model is ${speed} times as fast as the stock model and ${size} % of its size.`;
    }
    finish();
  },
};

function finish() {
  busy = false;
  updateControls();
}

/** Returns the worker, and starts a new one if there is none or the last one failed. */
function getWorker() {
  if (worker) return worker;
  worker = new Worker(new URL("./worker.js", import.meta.url), { type: "module" });
  worker.onmessage = ({ data }) => states[data.state](data);
  worker.onerror = (event) => {
    worker.terminate();
    worker = undefined;
    setStatus("");
    const reason = event.message || "it could not be loaded or ran out of memory; try a smaller model";
    showError(new Error(`The worker failed: ${reason}`));
    finish();
  };
  return worker;
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  showError();
  busy = true;
  updateControls();
  find("summary").textContent = "";
  const models = {};
  for (const which of Object.keys(TITLES)) {
    delete outcomes[which];
    models[which] = find(which).value.trim();
    query(which, ".name").textContent = models[which];
    query(which, ".error").textContent = "";
    query(which, ".outcome").hidden = true;
    panels[which].classList.add("used");
  }
  const [device, dtype, language] = ["device", "dtype", "language"].map((id) => find(id).value);
  getWorker().postMessage({ models, samples, language, device, dtype, site: new URL(".", url).pathname });
});

// Settings from the URL; by default, the two models in public/models/.

const adapter = await navigator.gpu?.requestAdapter().catch(() => null);
if (adapter) find("device").add(new Option("GPU (WebGPU)", "webgpu", true, true), 0);
find("language").append(...languages().map(([code, name]) => new Option(name, code)));
const defaults = { stock: "models/stock", compressed: "models/compressed", language: "en" };
for (const id of ["stock", "compressed", "language", "device", "dtype"]) {
  const value = url.searchParams.get(id) ?? defaults[id];
  if (value) find(id).value = value;
}
updateControls();
