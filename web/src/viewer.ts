// The viewer of a registration: linked panes, ways to compare them, overlays.

import { checkbox, choices, make, slider } from "./elements";
import { ofDeterminant } from "./colours";
import { Pane, type Plane } from "./pane";
import type { Role, Scene } from "./scene";
import { sentence } from "./answers";

type Layout = "side" | "blend" | "checkerboard" | "flicker";
type Compared = "warped" | "moving";
const PERIOD_MS = 700; // of the flicker: below three changes a second
const KEYS: Record<string, [number, number]> = {
  ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [1, 1], ArrowDown: [1, -1], PageUp: [2, 1], PageDown: [2, -1],
};

/** The viewer as an element, and what shows the images in it once the element is in the page. */
export class Viewer {
  readonly element = make("section", { class: "viewer", "aria-label": "Images", "data-layout": "side" });
  private readonly panes: Pane[];
  private readonly stage = make("div", { class: "panes" });
  private readonly values = make("output", { class: "values", "aria-live": "polite" });
  private readonly caption = make("p", { class: "caption" });
  private readonly problem = make("p", { class: "problem", role: "alert", hidden: true });
  private layout: Layout = "side";
  private compared: Compared = "warped";
  private plane: Plane = "all";
  private blend = 0.5;
  private cover = 0.6; // opacity of overlays
  private readonly on = { labels: false, jacobian: false };
  private timer = 0;

  constructor(private readonly scene: Scene) {
    const shown = (["fixed", "moving", "warped"] as const).filter((role) => scene.title(role));
    this.panes = shown.map((role) => new Pane(role, scene, (pane) => this.moved(pane)));
    this.stage.append(...this.panes.map((pane) => pane.figure));
    this.element.append(this.tools(), this.problem, this.stage, this.caption, this.values, this.help());
    this.element.addEventListener("keydown", (event) => this.key(event));
  }

  async open(): Promise<void> {
    this.element.setAttribute("aria-busy", "true");
    for (const pane of this.panes) {
      this.values.textContent = `Loading: ${pane.title}`;
      await pane.open();
    }
    this.arrange();
    this.moved(this.panes[0]!);
    this.element.removeAttribute("aria-busy");
  }

  private tools(): HTMLElement {
    const both = this.panes.length > 1 && this.scene.title("fixed");
    const tools = make("div", { class: "tools" });
    if (both) {
      tools.append(choices<Layout>("Compare", "layout", [
        ["side", "Side by side"], ["blend", "Blend"], ["checkerboard", "Checkerboard"], ["flicker", "Flicker"],
      ], "side", (value) => { this.layout = value; this.arrange(); }));
      if (this.scene.title("moving")) {
        tools.append(choices<Compared>("Fixed with", "compared", [["warped", "Warped"], ["moving", "Moving"]], "warped",
          (value) => { this.compared = value; this.arrange(); }));
      }
      const blend = slider("Opacity of the upper image", 50, (share) => { this.blend = share; this.arrange(); });
      blend.classList.add("only-blend");
      tools.append(blend);
    }
    tools.append(choices<Plane>("Slices", "plane", [
      ["all", "All"], ["axial", "Axial"], ["coronal", "Coronal"], ["sagittal", "Sagittal"],
    ], "all", (value) => { this.plane = value; this.arrange(); }), this.overlays());
    return tools;
  }

  private overlays(): HTMLElement {
    const set = make("fieldset", { class: "choices" }, make("legend", {}, "Overlays"));
    const cover = () => void this.attempt(() => this.coverAll());
    if (this.scene.title("jacobian")) {
      set.append(checkbox("Jacobian determinant", (on) => { this.on.jacobian = on; legend.hidden = !on; cover(); }));
    }
    set.append(checkbox("Deformation grid", (on) => void this.attempt(async () => {
      const field = on ? await this.scene.deformation() : null;
      for (const pane of this.panes) if (pane.role === "warped") pane.deformation = field;
    })));
    if (this.scene.title("fixed_labels") || this.scene.title("warped_labels")) {
      set.append(checkbox("Labels", (on) => { this.on.labels = on; cover(); }));
    }
    set.append(slider("Opacity", this.cover * 100, (share) => { this.cover = share; cover(); }));
    const legend = make("p", { class: "legend", hidden: true });
    for (const [at, text] of [[0, "folded"], [0.25, "1/4"], [0.5, "1/2"], [1, "1"], [2, "2"], [4, "4"]] as const) {
      const [r, g, b, a] = ofDeterminant(at);
      const swatch = make("i", { "aria-hidden": "true" });
      swatch.style.background = `rgba(${r}, ${g}, ${b}, ${a / 255})`;
      legend.append(make("span", {}, swatch, text));
    }
    set.append(legend);
    return set;
  }

  private help(): HTMLElement {
    return make("details", {}, make("summary", {}, "Keys"), make("p", {},
      "With an image chosen (Tab): arrow keys move the crosshair to the left and right, to the front and back; ",
      "Page Up and Page Down move it up and down. B, C and F switch to blend, checkerboard and flicker, S to side by ",
      "side; X swaps the two images of the flicker."));
  }

  private key(event: KeyboardEvent): void {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const target = event.target as HTMLElement;
    const step = KEYS[event.key];
    if (step && target.tagName === "CANVAS") {
      const pane = this.panes.find((one) => one.canvas === target)!;
      const voxel = this.scene.voxel(pane.share);
      voxel[step[0]] = voxel[step[0]]! + step[1];
      const share = this.scene.share(voxel);
      pane.share = share;
      this.moved(pane);
      event.preventDefault();
    }
    const layout = ({ s: "side", b: "blend", c: "checkerboard", f: "flicker" } as Record<string, Layout>)[event.key];
    const input = layout && this.element.querySelector<HTMLInputElement>(`input[name=layout][value=${layout}]`);
    if (input) input.click();
    if (event.key === "x") this.swap();
  }

  private async coverAll(): Promise<void> {
    for (const pane of this.panes) {
      const labels = `${pane.role}_labels` as Role;
      if (pane.role === "warped") await pane.overlay("jacobian", this.on.jacobian ? this.cover : 0);
      if (this.scene.title(labels)) await pane.overlay(labels, this.on.labels ? this.cover : 0);
    }
    this.moved(this.panes[0]!);
  }

  private arrange(): void {
    const side = this.layout === "side";
    this.element.dataset.layout = this.layout;
    this.element.dataset.compared = this.compared;
    this.element.dataset.plane = this.plane;
    window.clearInterval(this.timer);
    for (const pane of this.panes) {
      const upper = pane.role === this.compared;
      pane.figure.hidden = !side && !upper && pane.role !== "fixed";
      pane.figure.classList.toggle("upper", !side && upper);
      pane.figure.classList.remove("away");
      pane.stage.style.opacity = this.layout === "blend" && upper ? String(this.blend) : "";
      pane.arrange(this.plane, side && this.plane === "all");
    }
    if (this.layout === "flicker" && !matchMedia("(prefers-reduced-motion: reduce)").matches) {
      this.timer = window.setInterval(() => this.swap(), PERIOD_MS);
    }
    this.name();
  }

  /** Say under the images which of them lie over each other. */
  private name(): void {
    const upper = this.panes.find((pane) => pane.role === this.compared);
    const away = upper?.figure.classList.contains("away");
    this.caption.textContent = this.layout === "side" || !upper ? ""
      : this.layout === "flicker" ? (away ? "Fixed" : upper.title)
      : `${this.layout === "blend" ? "Below: fixed. Above" : "Fixed and, in every other square"}: ${upper.title.toLowerCase()}`;
  }

  /** Of a flicker, hide the upper image or show it again. */
  private swap(): void {
    if (this.layout !== "flicker") return;
    this.element.querySelector(".upper")?.classList.toggle("away");
    this.name();
  }

  private moved(from: Pane): void {
    const share = from.share;
    for (const pane of this.panes) if (pane !== from) pane.share = share;
    const voxel = this.scene.voxel(share);
    const place = this.scene.world(voxel).map((mm) => mm.toFixed(1)).join(", ");
    const told = (["fixed", "moving", "warped", "jacobian"] as const).flatMap((role) => {
      const value = this.scene.value(role, voxel);
      return value === undefined ? [] : [`${role === "jacobian" ? "Jacobian" : role} ${Number(value.toPrecision(4))}`];
    });
    const labels = (["fixed_labels", "warped_labels"] as const).flatMap((role) => {
      const rank = this.scene.value(role, voxel);
      return rank ? [`${role.replace("_labels", "")} label ${this.scene.described.labels[rank - 1] ?? rank}`] : [];
    });
    this.values.textContent = [`${place} mm (RAS)`, ...told, ...labels].join(" · ");
    for (const pane of this.panes) {
      pane.canvas.setAttribute("aria-label", `${pane.title}: slices through ${place} mm. Arrow keys move the crosshair.`);
    }
  }

  private async attempt(work: () => Promise<void>): Promise<void> {
    try {
      await work();
      this.problem.hidden = true;
    } catch (error) {
      this.problem.textContent = sentence(error);
      this.problem.hidden = false;
    }
  }
}
