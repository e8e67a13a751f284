// Stands for the codecs of Zarr stores, see vite.config.ts.

export default null;
