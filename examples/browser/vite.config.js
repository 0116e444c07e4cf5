import { defineConfig } from "vite";

// WebAssembly threads require these headers. Files from the Hub may still be loaded: the Hub sends CORS headers.
const headers = { "Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp" };

// Compressed responses have no Content-Length, which the progress bar needs.
const uncompressed = {
  name: "uncompressed",
  configurePreviewServer(server) {
    server.middlewares.use((request, _, next) => {
      delete request.headers["accept-encoding"];
      next();
    });
  },
};

export default defineConfig({
  plugins: [uncompressed],
  base: "./", // The built page can be served from any path.
  appType: "mpa", // Return 404 for a missing model file instead of index.html.
  build: { target: "es2022", chunkSizeWarningLimit: 2000 },
  worker: { format: "es" },
  // If pre-bundled, ONNX Runtime would look for its files in the wrong folder.
  optimizeDeps: { exclude: ["@huggingface/transformers"] },
  server: { headers },
  preview: { headers },
});
