// The page of ofg serve: choose two scans, watch the registration, see the result.

import "./style.css";
import { ask, authorise, bytes, json, Sentence, sentence } from "./answers";
import { make, size } from "./elements";
import { show } from "./result";

interface Models { models: { name: string; network: string; runtime: string; provider: string }[]; qualities: string[]; upload_bytes: number }
interface Job {
  id: string; state: "queued" | "running" | "done" | "failed" | "expired"; model: string;
  progress: { stage: string; step: number; steps: number; ahead: number } | null;
  problem: { detail: string } | null;
}
type Part = "fixed" | "moving" | "fixed_labels" | "labels";

const POLL_MS = 700;
const AGAIN_MS = 3000; // after the server did not answer
const STAGES: Record<string, string> = {
  read: "reading the images", prepare: "initial alignment", network: "the network", refine: "steps on the pair",
  transform: "composing the transform", warp: "warping", invert: "inverting", write: "writing the results",
  measure: "measuring", report: "drawing the report",
};
const order = document.getElementById("order")!;
const result = document.getElementById("registration")!;
const problem = make("p", { class: "problem", role: "alert", hidden: true });
const files = new Map<Part, File>();
let models: Models;

void start();

async function start(): Promise<void> {
  try {
    models = await json<Models>("v1/models");
  } catch (error) {
    order.replaceChildren(problem);
    say(error);
    if (error instanceof Sentence && error.status === 401) askForToken();
    return;
  }
  order.replaceChildren(problem, form());
  say(null);
  const id = location.hash.slice(1);
  if (/^[0-9a-f]{32}$/.test(id)) await watch(id);
}

/** Show what went wrong in a sentence; null takes it away. */
function say(error: unknown): void {
  problem.hidden = error === null;
  problem.textContent = error === null ? "" : sentence(error);
}

function askForToken(): void {
  const input = make("input", { type: "password", autocomplete: "off", required: true });
  const ready = (event: Event) => {
    event.preventDefault();
    authorise(input.value.trim());
    void start();
  };
  order.append(make("form", { class: "token", submit: ready },
    make("label", {}, "Token of this service", input), make("button", {}, "Enter")));
}

function form(): HTMLElement {
  const known: Record<string, string> = { none: "none: steps on the pair alone", auto: "auto: a model that fits, else none" };
  const model = make("select", { name: "model" }, ...models.models.map((one) =>
    make("option", { value: one.name }, known[one.name] ?? `${one.name} (${one.network}, ${one.runtime})`)));
  const quality = make("select", { name: "quality" }, make("option", { value: "" }, "as the model has it"),
    ...models.qualities.map((name) => make("option", { value: name }, name)));
  const scans = make("div", { class: "drops" }, drop("fixed", "Fixed scan", "the one that stays"),
    drop("moving", "Moving scan", "the one that is brought to it"));
  const labels = make("details", {}, make("summary", {}, "Label maps (optional)"),
    make("div", { class: "drops" }, drop("fixed_labels", "Labels of the fixed scan", "to measure the overlap"),
      drop("labels", "Labels of the moving scan", "warped, too")));
  const example = make("button", { type: "button", click: () => void attempt(takeExample) }, "Use the example");
  const submit = (event: Event) => {
    event.preventDefault();
    void attempt(() => send(model.value, quality.value));
  };
  return make("form", { submit },
    scans, labels, make("div", { class: "choices row" },
      make("label", {}, "Model", model), make("label", {}, "Quality", quality), example,
      make("button", { type: "submit", class: "main" }, "Register")));
}

/** A place for a file: click, keyboard, or drop. */
function drop(part: Part, title: string, hint: string): HTMLElement {
  const empty = "Choose a NIfTI file, or drop it here";
  const input = make("input", { type: "file", class: "hidden", accept: ".nii,.gz", "data-part": part, "aria-label": `${title}. ${empty}` });
  const name = make("span", { class: "chosen" }, empty);
  const place = make("label", { class: "drop" }, make("strong", {}, title), make("span", { class: "hint" }, hint), name, input);
  const take = (file: File | undefined) => {
    if (file) files.set(part, file);
    else files.delete(part);
    name.textContent = file ? `${file.name} (${size(file.size)})` : empty;
    input.setAttribute("aria-label", `${title}. ${name.textContent}`);
    place.classList.toggle("full", !!file);
  };
  input.addEventListener("change", () => take(input.files?.[0]));
  place.addEventListener("taken", (event) => take((event as CustomEvent<File>).detail));
  for (const kind of ["dragover", "dragleave", "drop"] as const) {
    place.addEventListener(kind, (event) => {
      event.preventDefault();
      place.classList.toggle("over", kind === "dragover");
      if (kind === "drop") take(event.dataTransfer?.files[0]);
    });
  }
  return place;
}

async function takeExample(): Promise<void> {
  for (const part of ["fixed", "moving"] as const) {
    const file = new File([await bytes(`v1/example/${part}`)], `example_${part}.nii`);
    order.querySelector(`[data-part=${part}]`)!.parentElement!.dispatchEvent(new CustomEvent("taken", { detail: file }));
  }
}

async function send(model: string, quality: string): Promise<void> {
  const missing = (["fixed", "moving"] as const).filter((part) => !files.has(part));
  if (missing.length) throw new Sentence(`The ${missing.join(" and the ")} scan is missing: drop a NIfTI file (.nii or .nii.gz), or use the example.`);
  if (files.has("fixed_labels") && !files.has("labels")) {
    throw new Sentence("Labels of the fixed scan are compared with those of the moving one: add these, or leave both out.");
  }
  const total = [...files.values()].reduce((sum, file) => sum + file.size, 0);
  if (total > models.upload_bytes) {
    throw new Sentence(`The files have ${size(total)}, and this service takes ${size(models.upload_bytes)} at once: crop or compress them (.nii.gz).`);
  }
  const body = new FormData();
  for (const [part, file] of files) body.append(part, file, /\.gz$/i.test(file.name) ? "image.nii.gz" : "image.nii");
  const options = { model, keep_images: true, ...(quality ? { quality } : {}) };
  body.append("options", new Blob([JSON.stringify(options)], { type: "application/json" }));
  result.replaceChildren(make("p", { role: "status" }, `Sending ${size(total)} …`));
  try {
    const job = await json<Job>("v1/registrations", { method: "POST", body });
    history.replaceState(null, "", `#${job.id}`);
    await watch(job.id);
  } catch (error) {
    result.replaceChildren();
    if (error instanceof Sentence && error.status === 429) {
      throw new Sentence(`The queue of the service is full. ${error.message} Your files are kept on this page: press Register again then.`);
    }
    throw error;
  }
}

/** Follow a job until it has ended, also over a restart of the server, then show the result. */
async function watch(id: string): Promise<void> {
  const status = make("p", { role: "status" }, "Waiting");
  const bar = make("progress", { "aria-label": "Progress of the registration", max: 1, value: 0 });
  let over = false;
  const stop = make("button", { type: "button", click: () => { over = true; void attempt(() => remove(id)); } }, "Cancel");
  result.replaceChildren(make("div", { class: "progress" }, status, bar, stop));
  let job: Job | undefined;
  while (!over && (!job || job.state === "queued" || job.state === "running")) {
    try {
      job = await json<Job>(`v1/registrations/${id}`);
      say(null);
    } catch (error) {
      if (error instanceof Sentence && error.status) {
        result.replaceChildren();
        throw error;
      }
      say(new Sentence(`${sentence(error)} The registration goes on once the server is back; this page asks again every ${AGAIN_MS / 1000} s.`));
      await pause(AGAIN_MS);
      continue;
    }
    tell(job, status, bar);
    if (job.state === "queued" || job.state === "running") await pause(POLL_MS);
  }
  if (over || !job) return;
  result.replaceChildren();
  if (job.state === "failed") throw new Sentence(`The registration failed: ${job.problem?.detail ?? "the service does not say why"}`);
  if (job.state === "expired") throw new Sentence("The files of this registration have been deleted, their time is over: register the pair again.");
  const shown = make("div");
  const away = make("button", { type: "button", click: () => void attempt(() => remove(id)) }, "Delete this result from the server");
  result.replaceChildren(shown, away);
  await show(shown, `v1/registrations/${id}/`, "view");
}

function tell(job: Job, status: HTMLElement, bar: HTMLProgressElement): void {
  const { progress } = job;
  if (!progress) return;
  bar.max = progress.steps;
  bar.value = progress.step;
  const text = job.state === "queued"
    ? progress.ahead ? `Waiting: ${progress.ahead} ${progress.ahead === 1 ? "registration comes" : "registrations come"} first` : "Waiting"
    : `Registering: ${STAGES[progress.stage] ?? progress.stage}`;
  if (status.textContent !== text) status.textContent = text; // screen readers read what changes
}

async function remove(id: string): Promise<void> {
  await ask(`v1/registrations/${id}`, { method: "DELETE" });
  history.replaceState(null, "", location.pathname);
  result.replaceChildren(make("p", { role: "status" }, "Deleted from the server."));
}

async function attempt(work: () => Promise<void>): Promise<void> {
  say(null);
  try {
    await work();
  } catch (error) {
    say(error);
  }
}

function pause(ms: number): Promise<void> {
  return new Promise((done) => setTimeout(done, ms));
}
