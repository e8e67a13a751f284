// What stands beside the images: names, warnings, measures, downloads.

import { make, size } from "./elements";
import { bytes, guarded, json, sentence } from "./answers";
import { type Described, Scene } from "./scene";
import { Viewer } from "./viewer";

const VERDICTS: Record<string, string> = { warn: "worse than the limit for a warning", fail: "worse than the limit" };

/**
 * Show a registration in an element, or say what is in the way.
 * @param base what the addresses in its description are relative to, with a slash at its end.
 * @param name of the description there.
 */
export async function show(where: HTMLElement, base: string, name: string): Promise<void> {
  where.replaceChildren(make("p", { role: "status" }, "Loading the registration …"));
  try {
    const described = await json<Described>(base + name);
    document.title = `${described.name} · OFG Deploy`;
    const viewer = new Viewer(new Scene(described, base));
    where.replaceChildren(
      make("div", { class: "title" }, make("h2", {}, described.name), status(described)),
      ...lines(described),
      make("div", { class: "result" }, viewer.element, beside(described, base)),
    );
    await viewer.open();
  } catch (error) {
    const gl = error instanceof Error && /webgl/i.test(error.message);
    where.prepend(make("p", { class: "problem", role: "alert" }, gl
      ? "This browser has no WebGL 2, which the images need: use another browser, or switch it on."
      : sentence(error)));
    where.querySelector("[role=status]")?.remove();
  }
}

function status(of: Described): HTMLElement {
  const words: Record<string, string> = { pass: "passes the limits", warn: "look at it", fail: "fails the limits" };
  return make("span", { class: `status ${of.status}` }, words[of.status] ?? of.status);
}

function lines(of: Described): HTMLElement[] {
  const every = [...new Set([...of.reasons, ...of.notes])];
  return every.length ? [make("ul", { class: "warnings", "aria-label": "Warnings" }, ...every.map((text) => make("li", {}, text)))] : [];
}

function beside(of: Described, base: string): HTMLElement {
  const about = make("dl", { class: "about" });
  for (const [name, text] of Object.entries(of.about)) about.append(make("div", {}, make("dt", {}, name), make("dd", {}, text)));
  const files = make("ul", { class: "files" }, ...of.files.map((file) => make("li", {},
    link(base + file.address, file.name), ` ${size(file.bytes)}`)));
  return make("aside", { "aria-label": "Measures and files" },
    make("h3", {}, "Measures"), measures(of), ...perLabel(of),
    make("h3", {}, "Registration"), about,
    make("h3", {}, "Files"), files);
}

/** A download; what needs the token is fetched with it first. */
function link(address: string, name: string): HTMLElement {
  const click = (event: Event) => {
    if (!guarded() || !event.isTrusted) return;
    event.preventDefault();
    void bytes(address).then((content) => {
      const held = URL.createObjectURL(new Blob([content]));
      make("a", { href: held, download: name }).click();
      URL.revokeObjectURL(held);
    }, (error: unknown) => { anchor.title = sentence(error); });
  };
  const anchor = make("a", { href: address, download: name, click }, name);
  return anchor;
}

function measures(of: Described): HTMLElement {
  const body = make("tbody");
  for (const measure of of.measures) {
    const cells = measure.shown.map((text) => make("td", {}, text));
    if (cells.length === 1) cells[0]!.colSpan = 3;
    const last = cells.at(-1)!;
    if (measure.verdict in VERDICTS) {
      last.classList.add(measure.verdict);
      last.title = VERDICTS[measure.verdict]!;
    }
    body.append(make("tr", {}, make("th", { scope: "row", title: measure.about ?? "" }, measure.title), ...cells));
  }
  const heads = ["measure", "before", "start", "after"].map((text) => make("th", { scope: "col" }, text));
  return make("table", { class: "measures" },
    make("caption", { class: "hidden" }, "Before registration, after the initial alignment, and after registration"),
    make("thead", {}, make("tr", {}, ...heads)), body);
}

function perLabel(of: Described): HTMLElement[] {
  if (!of.per_label.rows.length) return [];
  const head = make("tr", {}, ...of.per_label.columns.map((text) => make("th", { scope: "col" }, text)));
  const rows = of.per_label.rows.map(([label, ...values]) =>
    make("tr", {}, make("th", { scope: "row" }, label!), ...values.map((text) => make("td", {}, text))));
  return [make("details", {}, make("summary", {}, `Every label (${rows.length})`),
    make("table", { class: "measures" }, make("thead", {}, head), make("tbody", {}, ...rows)))];
}
