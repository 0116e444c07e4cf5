import { defineConfig } from "vite";

// A page with these headers may use several threads. Hub files come with the permission that they ask for.
const headers = { "Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp" };

// A compressed answer does not say how long it is: there would be no progress to show.
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
  base: "./", // The built page works in any folder of a site.
  appType: "mpa", // A missing file of a model is an error, not index.html.
  build: { target: "es2022", chunkSizeWarningLimit: 2000 },
  worker: { format: "es" },
  // Bundled beforehand, ONNX Runtime would look for its files in the wrong folder.
  optimizeDeps: { exclude: ["@huggingface/transformers"] },
  server: { headers },
  preview: { headers },
});
