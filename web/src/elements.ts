// Elements made from code: text is always text, never markup.

type Child = Node | string;
type Attributes = Record<string, string | number | boolean | ((event: Event) => void)>;

/** An element; attributes that are functions listen to the event of their name, true and false set or omit. */
export function make<K extends keyof HTMLElementTagNameMap>(
  tag: K, attributes: Attributes = {}, ...children: Child[]
): HTMLElementTagNameMap[K] {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false) element.setAttribute(name, String(value));
  }
  element.append(...children);
  return element;
}

/** Buttons of which one is chosen, as radio buttons with a legend. */
export function choices<T extends string>(
  legend: string, name: string, options: readonly (readonly [T, string])[], chosen: T, changed: (value: T) => void,
): HTMLFieldSetElement {
  const set = make("fieldset", { class: "choices" }, make("legend", {}, legend));
  for (const [value, text] of options) {
    const input = make("input", { type: "radio", name, value, checked: value === chosen, change: () => changed(value) });
    set.append(make("label", {}, input, text));
  }
  return set;
}

/** A checkbox with its text. */
export function checkbox(text: string, changed: (on: boolean) => void): HTMLLabelElement {
  const input = make("input", { type: "checkbox", change: () => changed(input.checked) });
  return make("label", {}, input, text);
}

/** A slider from 0 to 100 with its text. */
export function slider(text: string, value: number, changed: (share: number) => void): HTMLLabelElement {
  const input = make("input", {
    type: "range", min: 0, max: 100, value, input: () => changed(Number(input.value) / 100),
  });
  return make("label", { class: "slider" }, make("span", {}, text), input);
}

/** Bytes as people read them. */
export function size(count: number): string {
  const power = Math.min(3, Math.max(0, Math.floor(Math.log10(Math.max(count, 1)) / 3)));
  return `${(count / 1000 ** power).toFixed(power && count / 1000 ** power < 10 ? 1 : 0)} ${["bytes", "kB", "MB", "GB"][power]}`;
}
