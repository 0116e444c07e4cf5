// Reads audio files and records the microphone.

export const RATE = 16000;

/** Decodes a file or a recording to 16 kHz mono samples, in any format that the browser supports. */
export async function decode(blob) {
  const context = new OfflineAudioContext(1, 1, RATE); // decodeAudioData() resamples to the rate of the context
  let audio;
  try {
    audio = await context.decodeAudioData(await blob.arrayBuffer());
  } catch (error) {
    throw new Error("The browser cannot decode this file; try WAV, MP3, FLAC or Ogg.", { cause: error });
  }
  if (audio.length === 0) throw new Error("The file contains no audio; choose another one.");
  const samples = new Float32Array(audio.length);
  for (let channel = 0; channel < audio.numberOfChannels; channel++) {
    audio.getChannelData(channel).forEach((value, index) => (samples[index] += value / audio.numberOfChannels));
  }
  return samples;
}

/** Starts recording. Resolves to a function that stops the recording and resolves to its blob. */
export async function record() {
  if (!navigator.mediaDevices) {
    throw new Error("The microphone is only available over HTTPS or on localhost.");
  }
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ audio: true });
  } catch (error) {
    const reasons = {
      NotAllowedError: "Microphone access was denied; allow it in the browser's site settings.",
      NotFoundError: "No microphone found; connect one and try again.",
      NotReadableError: "The microphone cannot be read; close other programs that may be using it.",
    };
    throw new Error(reasons[error.name] ?? `Microphone error: ${error.message}`, { cause: error });
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
