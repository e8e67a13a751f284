// A registration as the server describes it (ofg_deploy/web/described.py), and its images.

import { NVImage } from "@niivue/niivue";
import { bytes } from "./answers";

export type Role = "fixed" | "moving" | "warped" | "jacobian" | "fixed_labels" | "warped_labels";
type Three = [number, number, number];

export interface Described {
  name: string;
  about: Record<string, string>;
  status: string;
  reasons: string[];
  notes: string[];
  shape: Three;
  spacing_mm: Three;
  world_from_vox: number[][];
  images: { role: Role; title: string; address: string; labels: boolean; window?: [number, number] }[];
  deformation: { address: string; shape: Three; spacing_mm: Three };
  labels: number[];
  measures: { title: string; about?: string; shown: string[]; verdict: string }[];
  per_label: { columns: string[]; rows: string[][] };
  files: { role: string; name: string; bytes: number; address: string }[];
}

/** Images of a registration, each fetched once. All lie on one grid whose axes are R, A, S. */
export class Scene {
  private readonly kept = new Map<Role, Promise<ArrayBuffer>>();
  private readonly voxels = new Map<Role, Float32Array | Uint8Array>();

  /** @param base what the addresses in the description are relative to, with a slash at its end. */
  constructor(readonly described: Described, private readonly base: string) {}

  title(role: Role): string | undefined {
    return this.described.images.find((image) => image.role === role)?.title;
  }

  /** An image for one viewer, each of which needs its own. */
  async image(role: Role): Promise<NVImage> {
    const found = this.described.images.find((image) => image.role === role)!;
    if (!this.kept.has(role)) this.kept.set(role, bytes(this.base + found.address));
    const content = await this.kept.get(role)!;
    const [low, high] = found.window ?? [NaN, NaN];
    const image = await NVImage.loadFromUrl({ url: content, name: `${role}.nii`, cal_min: low, cal_max: high });
    this.voxels.set(role, image.img as Float32Array | Uint8Array);
    return image;
  }

  /** (3, X, Y, Z) in mm along the axes. */
  async deformation(): Promise<Float32Array> {
    return new Float32Array(await bytes(this.base + this.described.deformation.address));
  }

  /** The value of an image in a voxel; undefined while the image has not been fetched. */
  value(role: Role, [x, y, z]: Three): number | undefined {
    const [nx, ny] = this.described.shape;
    return this.voxels.get(role)?.[x + nx * (y + ny * z)];
  }

  /** The voxel in which a fraction (0..1) of each axis lies. */
  voxel(share: ArrayLike<number>): Three {
    return this.described.shape.map((count, axis) =>
      Math.min(count - 1, Math.max(0, Math.floor(share[axis]! * count)))) as Three;
  }

  /** Where the centre of a voxel lies as a fraction of each axis; of the last voxel for one beyond it. */
  share(voxel: Three): Three {
    return this.described.shape.map((count, axis) =>
      (Math.min(count - 1, Math.max(0, voxel[axis]!)) + 0.5) / count) as Three;
  }

  /** RAS mm of a voxel's centre. */
  world(voxel: Three): Three {
    return this.described.world_from_vox.slice(0, 3).map((row) =>
      row[0]! * voxel[0] + row[1]! * voxel[1] + row[2]! * voxel[2] + row[3]!) as Three;
  }
}
