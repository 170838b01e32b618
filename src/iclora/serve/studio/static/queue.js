// @ts-check
// Queue: what runs, what waits and in which order, what has ended.
import { call, post, url } from "./api.js";
import { place } from "./data.js";
import { by, step, useKeys } from "./keys.js";
import { html, useLayoutEffect, useRef } from "./lib.js";
import { attempt, Icon, Picture, Progress, Wrong } from "./parts.js";
import { ended, know, pause, queue, running, waiting } from "./state.js";
import { doing, done } from "./undo.js";
import { ago, lasting, unmarked } from "./words.js";

/** @typedef {import("./state.js").Job} Job */

const SAID = /** @type {Record<string, string>} */ ({
  generate: "Make", complete: "Complete", reroll: "Make again", extend: "Story", evaluate: "Evaluate",
  prompt: "Words", caption: "Caption", check: "Check", compose: "Compose", train: "Train",
});

/** The job whose row has the focus by a key: it keeps it when the row goes to another list. A finger's row must not scroll. */
let focused = "";
addEventListener("focusin", ({ target }) => (focused = (target instanceof Element && target.matches(":focus-visible") && target.closest("[data-job]")?.getAttribute("data-job")) || ""));

const retry = (/** @type {Job} */ job) => attempt(async () => know(await post(`jobs/${job.id}/retry`)));
const cancel = (/** @type {Job} */ job) => attempt(() => doing(async () => {
  const now = await post(`jobs/${job.id}/cancel`);
  know(now);
  done(now.status === "cancelled" ? "Cancelled" : "Stops after this step", async () => know(await post(`jobs/${job.id}/retry`)));
}));

/** Put a waiting job before another; null is the end. @param {Job} job @param {Job | undefined} other */
const move = (job, other) => attempt(async () => {
  if (other && other.id !== job.id) know(await call("PATCH", `jobs/${job.id}`, { before: other.id }));
});

export function Queue() {
  const order = waiting.value;
  const more = queue.value.waiting - order.length;
  const past = ended.value.slice(0, 50);
  useKeys("queue", { next: () => step("[data-job]", 1), before: () => step("[data-job]", -1) });
  const nothing = !order.length && !running.value.length && !past.length;
  return html`<div class="queue">
    <div class="buttons"><h1>Queue</h1>
      <button type="button" aria-pressed=${queue.value.paused} onClick=${pause} title=${by("all", "pause").title}>
        <${Icon} name=${queue.value.paused ? "play" : "pause"} /> ${queue.value.paused ? "Go on" : "Pause"}</button>
      ${queue.value.paused && html`<span class="quiet">Nothing further is begun; what runs goes on.</span>`}
    </div>
    ${nothing && html`<div class="nothing"><h2>Nothing waits</h2><p class="quiet">What you make is queued here, and survives a restart.</p><a class="button main" href="#/make">Make a set</a></div>`}
    ${running.value.length > 0 && html`<h2>Runs</h2><ul class="rows">${running.value.map((job) => html`<${Row} key=${job.id} job=${job} />`)}</ul>`}
    ${order.length > 0 && html`<h2>Waits</h2><ol class="rows">${order.map((job, n) => html`<${Row} key=${job.id} job=${job} at=${n} order=${order} />`)}</ol>`}
    ${more > 0 && html`<p class="quiet">and ${more} more</p>`}
    ${past.length > 0 && html`<h2>Ended</h2><ul class="rows">${past.map((job) => html`<${Row} key=${job.id} job=${job} />`)}</ul>`}
  </div>`;
}

/** What stands for a job that has made no picture. */
const SIGNS = /** @type {Record<string, string>} */ ({ extend: "story", evaluate: "pair", train: "play", caption: "folder", check: "folder", compose: "folder" });

/** Where a job's work is seen; empty if nowhere. @param {Job} job */
function placeOf({ id, kind, input, result }) {
  if (result?.sets?.length) return `gallery/${result.sets[0]}`;
  if (kind === "train") return `train/${input.resume ?? `runs~${input.name}`}`;
  if (kind === "evaluate") return `compare/${id}`;
  if (kind === "extend") return "story";
  if (kind === "prompt") return "make";
  return input.data ? place(input.data) : "";
}

/** What a job is about, in a line. @param {Job} job */
const about = (job) => job.input.prompt?.[0] ?? job.input.story?.split("\n").find((/** @type {string} */ line) => line.trim()) ?? job.input.idea?.[0] ?? job.input.name ?? job.input.data
  ?? (job.input.panel ? `panel ${job.input.panel.join(", ")}` : job.input.request ? "a set, exactly as it was" : "");

/** @param {{job: Job, at?: number, order?: Job[]}} props */
function Row({ job, at, order = [] }) {
  const ref = useRef(/** @type {any} */ (null));
  useLayoutEffect(() => {
    if (focused === job.id && document.activeElement === document.body) ref.current.focus();
  }, []);
  const made = job.result?.sets?.[0];
  const waits = at !== undefined;
  const where = placeOf(job);
  const name = SAID[job.kind] ?? job.kind;
  const took = job.ended && job.started ? `, took ${lasting(job.ended - job.started)}` : "";
  const drag = waits ? {
    draggable: true,
    onDragStart: (/** @type {DragEvent} */ event) => event.dataTransfer?.setData("text/job", job.id),
    onDragOver: (/** @type {DragEvent} */ event) => event.dataTransfer?.types.includes("text/job") && event.preventDefault(),
    onDrop: (/** @type {DragEvent} */ event) => {
      event.preventDefault();
      const other = order.find((each) => each.id === event.dataTransfer?.getData("text/job"));
      if (other) move(other, job);
    },
  } : {};
  return html`<li class=${`row ${job.status}`} ref=${ref} data-job=${job.id} data-acts tabindex="0" aria-label=${`${name}: ${unmarked(about(job)).slice(0, 80)}, ${job.status}`} ...${drag}>
    ${made ? html`<a class="thumb" href=${`#/gallery/${made}`} tabindex="-1" aria-hidden="true"><${Picture} src=${url(`sets/${made}/thumb.webp`)} alt="" /></a>` : html`<span class="thumb" aria-hidden="true"><${Icon} name=${SIGNS[job.kind] ?? "picture"} /></span>`}
    <div class="what"><p><b>${where ? html`<a href=${`#/${where}`} ...${by("queue", "see")}>${name}</a>` : name}</b> ${unmarked(about(job))}</p>
      <p>${job.ended === null ? html`<${Progress} job=${job} />` : html`<span class="quiet">${job.status} ${ago(job.ended)}${took}${job.attempt > 1 ? `, attempt ${job.attempt}` : ""}</span>`}</p>
      <${Wrong} error=${job.error} /></div>
    <div class="tools">
      ${waits && html`<button type="button" aria-label="Earlier" ...${by("queue", "up")} disabled=${at === 0} onClick=${() => move(job, order[at - 1])}><${Icon} name="up" /></button>
        <button type="button" aria-label="Later" ...${by("queue", "down")} disabled=${at === order.length - 1} onClick=${() => move(order[at + 1], job)}><${Icon} name="down" /></button>`}
      ${job.ended === null && html`<button type="button" disabled=${job.status === "cancelling"} ...${by("queue", "cancel")} onClick=${() => cancel(job)}>Cancel</button>`}
      ${(job.status === "failed" || job.status === "cancelled") && html`<button type="button" ...${by("queue", "retry")} onClick=${() => retry(job)}>Try again</button>`}
    </div>
  </li>`;
}
