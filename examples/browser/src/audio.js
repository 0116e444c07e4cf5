// Audio files and the microphone in, 16 kHz mono samples out.

export const RATE = 16000;

/** Samples of a file or a recording, in whatever form the browser can read. */
export async function decode(blob) {
  const context = new OfflineAudioContext(1, 1, RATE); // decodes to its own rate
  let audio;
  try {
    audio = await context.decodeAudioData(await blob.arrayBuffer());
  } catch (error) {
    throw new Error("The browser cannot read this file as audio; try WAV, MP3, FLAC or Ogg.", { cause: error });
  }
  if (audio.length === 0) throw new Error("There is no sound in this file.");
  const samples = new Float32Array(audio.length);
  for (let channel = 0; channel < audio.numberOfChannels; channel++) {
    audio.getChannelData(channel).forEach((value, at) => (samples[at] += value / audio.numberOfChannels));
  }
  return samples;
}

/** Starts a recording; resolves to a function that ends it and resolves to what was recorded. */
export async function record() {
  if (!navigator.mediaDevices) {
    throw new Error("Browsers give the microphone to pages over HTTPS or on localhost only.");
  }
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ audio: true });
  } catch (error) {
    const reasons = {
      NotAllowedError: "The browser does not let this page use the microphone; allow it in the site's settings.",
      NotFoundError: "No microphone was found.",
      NotReadableError: "The microphone cannot be read; another program may be using it.",
    };
    throw new Error(reasons[error.name] ?? `The microphone does not work: ${error.message}`, { cause: error });
  }
  const recorder = new MediaRecorder(stream);
  const parts = [];
  recorder.ondataavailable = ({ data }) => parts.push(data);
  recorder.start();
  return () =>
    new Promise((resolve) => {
      recorder.onstop = () => {
        stream.getTracks().forEach((track) => track.stop());
        resolve(new Blob(parts, { type: recorder.mimeType }));
      };
      recorder.stop();
    });
}
