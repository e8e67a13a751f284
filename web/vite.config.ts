import { defineConfig } from "vite";

// Both pages go into the package; addresses in them are relative, since ofg view puts a token before every path.
export default defineConfig({
  base: "./",
  // The viewer reads Zarr stores, too, and would bring a megabyte of codecs for them. None is ever opened here.
  resolve: { alias: Object.fromEntries(["blosc", "lz4", "zstd"].map((name) => [`numcodecs/${name}`, "/src/no_codec.ts"])) },
  build: {
    outDir: "../ofg_deploy/web/static",
    emptyOutDir: true,
    modulePreload: { polyfill: false },
    license: { fileName: "licences.md" }, // of the packages in the bundle
    chunkSizeWarningLimit: 4000, // the viewer
    rollupOptions: { input: ["view.html", "index.html"] },
  },
});
