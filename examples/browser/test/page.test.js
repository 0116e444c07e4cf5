// Drives the built page in headless Chromium without network access and compares it with transformers in Python.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { after, before, test } from "node:test";
import { chromium } from "playwright-core";
import { preview } from "vite";

const here = new URL(".", import.meta.url).pathname;
const axe = createRequire(import.meta.url).resolve("axe-core/axe.min.js");
const expected = JSON.parse(readFileSync(`${here}made/expected.json`));
const SPOKEN = "test_003"; // the clip that the fake microphone plays

let server, browser, page;
const requests = [];
const errors = [];

before(async () => {
  server = await preview({ root: `${here}..`, logLevel: "error", preview: { host: "127.0.0.1", port: 0 } });
  browser = await chromium.launch({
    executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
    args: [
      "--no-sandbox",
      "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
      "--use-fake-device-for-media-stream",
      "--use-fake-ui-for-media-stream",
      `--use-file-for-fake-audio-capture=${here}made/${SPOKEN}.wav`,
    ],
  });
  page = await open("");
});

after(async () => {
  await browser?.close();
  await server?.close();
});

const site = () => server.resolvedUrls.local[0];

async function open(query, prepare) {
  const opened = await browser.newPage();
  opened.setDefaultTimeout(60_000);
  opened.context().on("request", (request) => requests.push(request.url()));
  opened.on("pageerror", (error) => errors.push(error.message));
  opened.on("console", (message) => message.type() === "error" && errors.push(message.text()));
  if (prepare) await opened.addInitScript(prepare);
  await opened.goto(site() + query);
  await opened.locator("#language").waitFor();
  return opened;
}

async function choose(file, on = page) {
  await on.setInputFiles("#file", file);
  await on.getByText("Clip ready.").waitFor();
}

async function transcribe(on = page) {
  await on.getByRole("button", { name: "Transcribe" }).click();
  await on.locator("#status", { hasText: "Done." }).waitFor();
}

async function shown(which, on = page) {
  const result = on.locator(`#${which}-result`);
  const cells = await result.locator("tbody tr").evaluateAll((rows) =>
    rows.map((row) => [...row.cells].map((cell) => cell.textContent)),
  );
  const facts = await result.locator("dd").allTextContents();
  return { text: await result.locator(".text").textContent(), cells, facts };
}

async function violations(on = page) {
  await on.addScriptTag({ path: axe });
  const { violations } = await on.evaluate(() => globalThis.axe.run());
  return violations.map(({ id, nodes }) => `${id}: ${nodes.map((node) => node.html).join(", ")}`);
}

test("both models give the same transcripts as in Python", async () => {
  await choose(`${here}made/test_000.wav`);
  await transcribe();
  for (const which of ["stock", "compressed"]) {
    const { text, chunks } = expected.test_000[which].segments;
    const found = await shown(which);
    assert.equal(found.text, text.trim());
    assert.deepEqual(
      found.cells,
      chunks.map(({ text, timestamp: [from, to] }) => [from.toFixed(2), to.toFixed(2), text.trim()]),
    );
    const [seconds, factor, files] = found.facts;
    const length = readFileSync(`${here}made/test_000.f32`).length / 4 / 16000;
    assert.ok(Number(seconds) > 0);
    assert.ok(Math.abs(length / Number(factor) - Number(seconds)) < 0.01, `RTFx ${factor}, ${seconds} s`);
    assert.match(files, /^\d+\.\d MB$/);
  }
  const same = expected.test_000.stock.segments.text === expected.test_000.compressed.segments.text;
  const summary = await page.locator("#summary").textContent();
  assert.ok(summary.startsWith(same ? "The transcripts are identical." : "The transcripts differ."), summary);
  assert.match(summary, /The compressed model is \d+\.\d\d times as fast/);
});

test("a FLAC file that is longer than the window is transcribed", async () => {
  await choose(`${here}../../digits/longform/longform_000.flac`);
  await transcribe();
  assert.equal((await shown("stock")).text, expected.longform_000.stock.segments.text.trim());
});

test("a microphone recording is transcribed", async () => {
  await page.getByRole("button", { name: "Record" }).click();
  await page.getByText("Recording…").waitFor();
  await page.waitForTimeout(6000); // longer than the clip, which the fake device loops
  await page.getByRole("button", { name: "Stop recording" }).click();
  await page.getByText("Clip ready.").waitFor();
  await transcribe();
  // The recording starts at a random position and may cut words, so only most pairs of words must match.
  const said = expected[SPOKEN].stock.segments.text.trim().split(" ");
  const heard = (await shown("stock")).text.split(" ");
  const pairs = (words) => words.slice(1).map((word, index) => `${words[index]} ${word}`);
  const looped = new Set(pairs([...said, ...said]));
  const known = pairs(heard).filter((pair) => looped.has(pair));
  const report = `heard ${heard.join(" ")}; said ${said.join(" ")}`;
  assert.ok(heard.length >= 4 && known.length >= 0.6 * (heard.length - 1), report);
});

test("the keyboard reaches all controls in the order of the page", async () => {
  await page.locator("body").press("Tab");
  const reached = [];
  for (let step = 0; step < 30 && reached.at(-1) !== "transcribe"; step++) {
    const [id, outline] = await page.evaluate(() => {
      const style = getComputedStyle(document.activeElement);
      return [document.activeElement.id, style.outlineStyle];
    });
    if (id && id !== reached.at(-1)) reached.push(id);
    if (id && id !== "player") assert.notEqual(outline, "none", `${id} has no focus outline`);
    await page.keyboard.press("Tab");
  }
  const order = ["file", "record", "player", "stock", "compressed", "language", "device", "dtype", "transcribe"];
  assert.deepEqual(reached, order);
  await page.locator("#transcribe").focus();
  await page.keyboard.press("Enter");
  await page.locator("#status", { hasText: /Transcribing/ }).waitFor();
  await page.locator("#status", { hasText: "Done." }).waitFor();
});

for (const colorScheme of ["light", "dark"]) {
  test(`axe finds no violations in the ${colorScheme} colour scheme`, async () => {
    await page.emulateMedia({ colorScheme, reducedMotion: "reduce" });
    assert.deepEqual(await violations(), []);
  });
}

test("the page fits a phone without horizontal scrolling, and reduced motion disables transitions", async () => {
  await page.setViewportSize({ width: 360, height: 740 });
  assert.equal(await page.evaluate(() => document.documentElement.scrollWidth), 360);
  assert.deepEqual(await violations(), []);
  const duration = await page.locator("#transcribe").evaluate((button) => getComputedStyle(button).transitionDuration);
  assert.equal(duration, "0s");
});

test("no requests go to other sites, and no errors are logged", () => {
  const external = requests.filter((url) => !url.startsWith(site()) && !url.startsWith(`blob:${site()}`));
  assert.deepEqual(external, []);
  assert.ok(requests.some((url) => url.endsWith(".wasm")) && requests.some((url) => url.endsWith(".onnx")));
  assert.deepEqual(errors, []);
});

test("a file that is not audio gives an error message", async () => {
  await page.setInputFiles("#file", { name: "broken.wav", mimeType: "audio/wav", buffer: Buffer.from("not audio") });
  await page.getByRole("alert").getByText("cannot decode this file").waitFor();
  assert.ok(await page.locator("#transcribe").isDisabled());
});

test("denied microphone access gives an error message", async () => {
  const other = await open("", () => {
    const refused = new DOMException("Permission denied", "NotAllowedError");
    navigator.mediaDevices.getUserMedia = () => Promise.reject(refused);
  });
  await other.getByRole("button", { name: "Record" }).click();
  await other.getByRole("alert").getByText("Microphone access was denied").waitFor();
  await other.close();
});

test("a missing model does not stop the other one", async () => {
  const other = await open("?stock=models/nothing&dtype=fp32");
  await choose(`${here}made/test_000.wav`, other);
  await transcribe(other);
  assert.match(await other.locator("#stock-result .error").textContent(), /models\/nothing/);
  assert.equal((await shown("compressed", other)).text, expected.test_000.compressed.segments.text.trim());
  assert.equal(await other.locator("#summary").textContent(), "");
  await other.close();
});
