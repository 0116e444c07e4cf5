// The page: what the user chooses, and what comes back from the worker.
import { decode, RATE, record } from "./audio.js";
import { languages } from "./languages.js";

const TITLES = { stock: "Stock", compressed: "Compressed" };
const find = (id) => document.getElementById(id);
const form = find("form");
const address = new URL(location.href);

let samples; // of the clip
let busy = false;
let stop; // ends the recording, while there is one
let worker;
const outcomes = {};

/** A number of bytes, seconds ... as a person reads it. */
const number = (value, digits) =>
  value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
const moment = (seconds) => (seconds === null ? "–" : number(seconds, 2)); // unknown where Whisper wrote no time
const megabytes = (bytes) => `${number(bytes / 1e6, 1)} MB`;

function say(text) {
  find("status").textContent = text;
}

function complain(error) {
  if (error) console.error(error);
  find("error").textContent = error?.message ?? "";
}

/** Buttons as they fit what is going on. */
function update() {
  find("transcribe").disabled = !samples || busy || Boolean(stop);
  find("file").disabled = busy || Boolean(stop);
  find("record").disabled = busy;
  find("record").textContent = stop ? "Stop recording" : "Record";
}

// The clip

async function take(blob, name) {
  complain();
  samples = undefined;
  const player = find("player");
  URL.revokeObjectURL(player.src);
  player.hidden = true;
  find("clip").textContent = "No clip yet.";
  try {
    samples = await decode(blob);
    player.src = URL.createObjectURL(blob);
    player.hidden = false;
    find("clip").textContent = `${name}, ${number(samples.length / RATE, 1)} seconds`;
    say("The clip is ready.");
  } catch (error) {
    say("");
    complain(error);
  }
  update();
}

find("file").addEventListener("change", ({ target: { files } }) => {
  if (files.length) take(files[0], files[0].name);
});

find("record").addEventListener("click", async () => {
  complain();
  try {
    if (stop) {
      const end = stop;
      stop = undefined;
      find("file").value = "";
      await take(await end(), "Recording");
    } else {
      stop = await record();
      say("Recording.");
    }
  } catch (error) {
    complain(error);
  }
  update();
});

// The results

/** The place of one model's result. */
function panel(which) {
  const section = find("result").content.cloneNode(true).firstElementChild;
  const heading = section.querySelector("h2");
  heading.textContent = TITLES[which];
  heading.id = `${which}-heading`;
  section.id = `${which}-result`;
  section.setAttribute("aria-labelledby", heading.id);
  find("results").append(section);
  return section;
}

const panels = Object.fromEntries(Object.keys(TITLES).map((which) => [which, panel(which)]));

function part(which, selector) {
  return panels[which].querySelector(selector);
}

const states = {
  loading({ which, done, all }) {
    part(which, ".loading").hidden = false;
    part(which, "progress").value = all ? done / all : 0;
    part(which, ".size").textContent = all ? `${megabytes(done)} of ${megabytes(all)}` : "Looking for the files";
    if (!all) say(`Loading the ${which} model.`);
  },
  loaded({ which }) {
    part(which, ".loading").hidden = true;
  },
  running({ which }) {
    say(`The ${which} model transcribes.`);
  },
  done({ which, text, segments, seconds, bytes }) {
    outcomes[which] = { text, seconds, bytes };
    part(which, ".text").textContent = text || "(no speech found)";
    part(which, ".text").lang = find("language").value;
    part(which, ".seconds").textContent = number(seconds, 2);
    part(which, ".factor").textContent = number((seconds * RATE) / samples.length, 3);
    part(which, ".files").textContent = megabytes(bytes);
    part(which, "tbody").replaceChildren(
      ...segments.map(({ timestamp: [from, to], text: words }) => {
        const row = document.createElement("tr");
        for (const value of [moment(from), moment(to), words.trim()]) {
          row.insertCell().textContent = value;
        }
        row.lastElementChild.lang = find("language").value;
        return row;
      }),
    );
    part(which, ".outcome").hidden = false;
  },
  failed({ which, message }) {
    part(which, ".loading").hidden = true;
    part(which, ".error").textContent = `The ${which} model failed. ${message}`;
  },
  finished() {
    const { stock, compressed } = outcomes;
    say(stock || compressed ? "Done." : "Nothing could be transcribed.");
    if (stock && compressed) {
      const texts = stock.text === compressed.text ? "The same text" : "The texts differ";
      const speed = number(stock.seconds / compressed.seconds, 2);
      const size = number((100 * compressed.bytes) / stock.bytes, 0);
      find("summary").textContent =
        `${texts}. The compressed model is ${speed} times as fast, with ${size} % of the size.`;
    }
    finish();
  },
};

function finish() {
  busy = false;
  update();
}

/** The worker; one that broke down is replaced at the next try. */
function start() {
  if (worker) return worker;
  worker = new Worker(new URL("./worker.js", import.meta.url), { type: "module" });
  worker.onmessage = ({ data }) => states[data.state](data);
  worker.onerror = (event) => {
    worker.terminate();
    worker = undefined;
    say("");
    const why = event.message || "it could not be loaded, or there is too little memory";
    complain(new Error(`The worker stopped: ${why}`));
    finish();
  };
  return worker;
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  complain();
  busy = true;
  update();
  find("summary").textContent = "";
  const models = {};
  for (const which of Object.keys(TITLES)) {
    delete outcomes[which];
    models[which] = find(which).value.trim();
    part(which, ".name").textContent = models[which];
    part(which, ".error").textContent = "";
    part(which, ".outcome").hidden = true;
    panels[which].classList.add("used");
  }
  const [device, dtype, language] = ["device", "dtype", "language"].map((id) => find(id).value);
  start().postMessage({ models, samples, language, device, dtype, site: new URL(".", address).pathname });
});

// What the address asks for, otherwise the miniature.

const adapter = await navigator.gpu?.requestAdapter().catch(() => null);
if (adapter) find("device").add(new Option("graphics card (WebGPU)", "webgpu", true, true), 0);
find("language").append(...languages().map(([code, name]) => new Option(name, code)));
const defaults = { stock: "models/stock", compressed: "models/compressed", language: "en" };
for (const id of ["stock", "compressed", "language", "device", "dtype"]) {
  const wanted = address.searchParams.get(id) ?? defaults[id];
  if (wanted) find(id).value = wanted;
}
update();
