// One image in a NiiVue canvas: the same three slices in every pane, overlays, and lines drawn on top.

import { MULTIPLANAR_TYPE, Niivue, SHOW_RENDER, SLICE_TYPE } from "@niivue/niivue";
import { addJacobianColours, labelColours, LARGEST_DETERMINANT } from "./colours";
import { make } from "./elements";
import { draw, type Tile } from "./lattice";
import type { Role, Scene } from "./scene";

export type Plane = "all" | "axial" | "coronal" | "sagittal";
const PLANES = { all: SLICE_TYPE.MULTIPLANAR, axial: SLICE_TYPE.AXIAL, coronal: SLICE_TYPE.CORONAL, sagittal: SLICE_TYPE.SAGITTAL };
const AXES: Record<number, { across: 0 | 1 | 2; axes: [0 | 1 | 2, 0 | 1 | 2] }> = {
  [SLICE_TYPE.AXIAL]: { across: 2, axes: [0, 1] },
  [SLICE_TYPE.CORONAL]: { across: 1, axes: [0, 2] },
  [SLICE_TYPE.SAGITTAL]: { across: 0, axes: [1, 2] },
};

/** An image and what lies over it. */
export class Pane {
  readonly figure: HTMLElement;
  readonly stage = make("div", { class: "stage" });
  readonly canvas = make("canvas", { tabindex: 0, role: "img" });
  private readonly lines = make("canvas", { class: "lines", "aria-hidden": "true" });
  private readonly nv: Niivue;
  private readonly overlays = new Map<Role, number>();
  private lattice: Float32Array | null = null;

  constructor(readonly role: Role, private readonly scene: Scene, moved: (pane: Pane) => void) {
    this.stage.append(this.canvas, this.lines);
    this.figure = make("figure", { class: "pane", "data-role": role }, this.stage, make("figcaption", {}, this.title));
    this.nv = new Niivue({
      backColor: [0.067, 0.086, 0.11, 1], crosshairColor: [1, 0.75, 0.2, 0.85], crosshairWidth: 0.6,
      crosshairWidthUnit: "percent", fontColor: [0.8, 0.85, 0.9, 1], isColorbar: false, loadingText: "", logLevel: "error",
      multiplanarShowRender: SHOW_RENDER.NEVER, sliceType: SLICE_TYPE.MULTIPLANAR, dragAndDropEnabled: false,
      viewModeHotKey: "", clipPlaneHotKey: "", cycleClipPlaneHotKey: "", atlasOutline: 1, multiplanarPadPixels: 4,
    });
    this.nv.onLocationChange = () => moved(this);
    const drawn = this.nv.drawScene.bind(this.nv);
    this.nv.drawScene = () => {
      if (!this.canvas.clientWidth) return undefined; // hidden; it is drawn when it is shown
      const result = drawn();
      this.drawLines();
      return result;
    };
  }

  get title(): string {
    return this.scene.title(this.role) ?? this.role;
  }

  /** Fetch the image and show it; the figure must be in the page. */
  async open(): Promise<void> {
    await this.nv.attachToCanvas(this.canvas);
    addJacobianColours(this.nv);
    this.nv.addVolume(await this.scene.image(this.role));
  }

  /** Where the crosshair is, as shares 0..1 of the axes. */
  get share(): [number, number, number] {
    const [x, y, z] = this.nv.scene.crosshairPos;
    return [x!, y!, z!];
  }

  set share(value: [number, number, number]) {
    this.nv.scene.crosshairPos = new Float32Array(value) as unknown as typeof this.nv.scene.crosshairPos;
    this.nv.drawScene();
  }

  /** Which slices, and whether they stand in a column or in a row. */
  arrange(plane: Plane, column: boolean): void {
    this.nv.setMultiplanarLayout(column ? MULTIPLANAR_TYPE.COLUMN : MULTIPLANAR_TYPE.ROW);
    this.nv.setSliceType(PLANES[plane]);
  }

  /** Lay an image over this one; opacity 0 takes it away. */
  async overlay(role: Role, opacity: number): Promise<void> {
    const at = this.overlays.get(role);
    if (at !== undefined) return this.nv.setOpacity(at, opacity);
    if (opacity === 0) return;
    this.overlays.set(role, this.nv.volumes.length);
    const image = await this.scene.image(role);
    if (role === "jacobian") {
      image.cal_min = 0;
      image.cal_max = LARGEST_DETERMINANT;
      image.colormap = "jacobian";
    } else {
      image.setColormapLabel(labelColours());
    }
    image.opacity = opacity;
    this.overlays.set(role, this.nv.volumes.length);
    this.nv.addVolume(image);
  }

  /** Draw the deformation grid over the slices; null takes it away. */
  set deformation(field: Float32Array | null) {
    this.lattice = field;
    this.nv.drawScene();
  }

  private drawLines(): void {
    const { width, height } = this.canvas;
    if (this.lines.width !== width) this.lines.width = width;
    if (this.lines.height !== height) this.lines.height = height;
    const pen = this.lines.getContext("2d")!;
    pen.clearRect(0, 0, width, height);
    if (!this.lattice || !this.nv.volumes.length) return;
    pen.strokeStyle = "rgba(255, 214, 90, 0.9)";
    pen.lineWidth = Math.max(1, width / 700);
    for (const tile of this.tiles()) draw(pen, tile, this.lattice, this.scene.described);
  }

  /** Where the slices lie on the canvas: NiiVue is asked what two of its pixels show, the rest follows. */
  private tiles(): Tile[] {
    return this.nv.screenSlices.flatMap((slice, index) => {
      const plane = AXES[slice.axCorSag];
      if (!plane) return [];
      const [left, top, width, height] = slice.leftTopWidthHeight as [number, number, number, number];
      const [x, y] = [[left + width / 4, left + (width * 3) / 4], [top + height / 4, top + (height * 3) / 4]] as [number[], number[]];
      const first = this.nv.screenXY2TextureFrac(x[0]!, y[0]!, index, false);
      const last = this.nv.screenXY2TextureFrac(x[1]!, y[1]!, index, false);
      const [across, up] = ([[x, plane.axes[0]], [y, plane.axes[1]]] as const).map(([pixel, axis]) => {
        const whole = (pixel[1]! - pixel[0]!) / (last[axis]! - first[axis]!);
        return { start: pixel[0]! - first[axis]! * whole, whole };
      }) as [Tile["x"], Tile["y"]];
      return [{ ...plane, x: across, y: up, share: this.share[plane.across] }];
    });
  }
}
