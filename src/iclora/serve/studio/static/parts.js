// @ts-check
// Small things that several screens show.
import { Problem } from "./api.js";
import { Fragment, html, signal, useRef, useEffect, useLayoutEffect } from "./lib.js";
import * as past from "./undo.js";
import { lasting } from "./words.js";

/** A problem that concerns no field of the screen. */
export const trouble = signal(/** @type {Problem | null} */ (null));

/**
 * Do something that the server may refuse; then say why, until it is put away.
 * @param {() => any} work @param {(problem: Problem) => void} [say] where it stands, if not above the screen
 */
export async function attempt(work, say) {
  try {
    return await work();
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    if (say) say(error);
    else trouble.value = error;
    return undefined;
  }
}

const SHAPES = /** @type {Record<string, string>} */ ({
  star: "M8 1.8l1.9 3.9 4.3.6-3.1 3 .7 4.3L8 11.6l-3.8 2 .7-4.3-3.1-3 4.3-.6z",
  lock: "M4 7V5a4 4 0 0 1 8 0v2h1v7H3V7zM5.6 7h4.8V5a2.4 2.4 0 0 0-4.8 0z",
  open: "M4 7V5a4 4 0 0 1 7.7-1.5l-1.5.6A2.4 2.4 0 0 0 5.6 5v2H13v7H3V7z",
  again: "M13 3v4H9l1.6-1.6A4 4 0 1 0 12 9h1.6A5.6 5.6 0 1 1 11.8 4.2z",
  picture: "M2 3h12v10H2zm1.5 1.5v5l3-3 3 3 1.5-1.5 1.5 1.5v-5zM10 7a1 1 0 1 1 0-2 1 1 0 0 1 0 2z",
  folder: "M2 3h4.5l1.3 1.5H14V13H2zm1.5 3v5.5h9V6z",
  trash: "M6 2h4l.6 1H14v1.5H2V3h3.4zM3.2 5.5h9.6L12 14H4z",
  up: "M8 3l5 5-1.2 1.2L8.8 6.1V13H7.2V6.1L4.2 9.2 3 8z",
  down: "M8 13L3 8l1.2-1.2 3 3.1V3h1.6v6.9l3-3.1L13 8z",
  pause: "M4 3h3v10H4zm5 0h3v10H9z",
  play: "M4 2.5v11l9-5.5z",
  close: "M3.9 2.8L8 6.9l4.1-4.1 1.1 1.1L9.1 8l4.1 4.1-1.1 1.1L8 9.1l-4.1 4.1-1.1-1.1L6.9 8 2.8 3.9z",
  back: "M9.5 3L4.5 8l5 5 1.1-1.1L6.7 8l3.9-3.9z",
  next: "M6.5 3l5 5-5 5-1.1-1.1L9.3 8 5.4 4.1z",
  use: "M2 2h7v2H4v8h8V7h2v7H2zm7.5 5.5L13 4h-2V2h5v5h-2V5l-3.4 3.6z",
  pair: "M2 3h5v10H2zm7 0h5v10H9zm1.5 1.5v7h2v-7z",
  story: "M2 2.5h4v3H2zm5.5.7H14v1.6H7.5zM2 6.5h4v3H2zm5.5.7H14v1.6H7.5zM2 10.5h4v3H2zm5.5.7H14v1.6H7.5z",
  sun: "M8 4.5a3.5 3.5 0 1 1 0 7 3.5 3.5 0 0 1 0-7zM7.3 1h1.4v2H7.3zm0 12h1.4v2H7.3zM1 7.3h2v1.4H1zm12 0h2v1.4h-2zM2.6 3.6l1-1L5 4l-1 1zM11 12l1-1 1.4 1.4-1 1zM12.4 2.6l1 1L12 5l-1-1zM4 11l1 1-1.4 1.4-1-1z",
  moon: "M6.5 1.5a6.6 6.6 0 1 0 8 8 5.4 5.4 0 0 1-8-8z",
});

/** A sign; the button or link around it says in words what it is. @param {{name: string}} props */
export const Icon = ({ name }) =>
  html`<svg class="icon" viewBox="0 0 16 16" aria-hidden="true" focusable="false"><path d=${SHAPES[name]} /></svg>`;

/** A problem, where it belongs. @param {{error: Problem | null | undefined, id?: string, onClose?: () => void}} props */
export function Wrong({ error, id, onClose }) {
  if (!error) return null;
  // Further lines show the place, with a ^ below it that needs letters of one width.
  const [first, ...lines] = error.problem.split("\n").filter((line) => !/^\s*\^\s*$/.test(line));
  return html`<div class="wrong" role="alert" id=${id}>
    <strong>${plain(first)}${/[.:!?]$/.test(first) ? "" : "."}</strong>${" "}${lines.map((line) => html`<q>${line.trim()}</q>`)}<span>${plain(error.advice)}</span>
    ${onClose && html`<button type="button" class="bare" aria-label="Put this message away" title="Put it away (Esc)" onClick=${onClose}><${Icon} name="close" /></button>`}
  </div>`;
}

/** Settings without the backticks that other doors turn into options. */
export const plain = (/** @type {string} */ text) => (text ?? "").replace(/`([^`]+)`/g, "“$1”");

/**
 * A picture that is enlarged by whole pixels if it is tiny, as toyland's are.
 * @param {{src: string, alt: string, eager?: boolean, class?: string}} props
 */
export function Picture({ src, alt, eager = false, ...more }) {
  return html`<img src=${src} alt=${alt} loading=${eager ? "eager" : "lazy"} decoding="async" onLoad=${sharpen} ...${more} />`;
}

function sharpen(/** @type {any} */ event) {
  const img = event.currentTarget;
  img.classList.toggle("tiny", Math.max(img.naturalWidth, img.naturalHeight) <= 256);
}

/** Pictures of long lists that are in view. @type {WeakSet<Element>} */
const inView = new WeakSet();
const view = new IntersectionObserver((all) => {
  for (const { target, isIntersecting } of all) {
    const img = /** @type {HTMLImageElement | null} */ (target.querySelector("img[data-src]"));
    if (!img) continue;
    if (!isIntersecting) {
      inView.delete(img);
      if (!img.complete) img.removeAttribute("src");
    } else if (!inView.has(img)) {
      inView.add(img);
      setTimeout(() => nextFrame(() => nextFrame(() => ask(img))), 120);
    }
  }
}, { rootMargin: "300px" });

const nextFrame = (/** @type {() => void} */ work) => void requestAnimationFrame(work);

/** After two frames a browser that is busy has told, too, of what has left. @param {HTMLImageElement} img */
function ask(img) {
  if (inView.has(img) && !img.naturalWidth) img.src = img.dataset.src ?? "";
}

/**
 * The picture of an entry of a long list: it is asked for once it has stayed in view for a moment, and given up if it
 * leaves before it came. Each is made by the server: those that somebody scrolled past would hold back the others.
 * @param {{src: string, alt: string, onError?: (event: any) => void}} props
 */
export function Thumb({ src, alt, ...more }) {
  const ref = useRef(/** @type {any} */ (null));
  useEffect(() => {
    const img = ref.current;
    // Nothing is told of what is inside an entry while the browser does not draw it.
    const entry = img.closest("li");
    img.removeAttribute("src");
    view.observe(entry);
    return () => {
      view.unobserve(entry);
      inView.delete(img);
    };
  }, [src]);
  return html`<img ref=${ref} data-src=${src} alt=${alt} decoding="async" onLoad=${sharpen} ...${more} />`;
}

/** A joint prompt with its markers told apart. @param {{text: string}} props */
export function Prompt({ text }) {
  const parts = text.split(/(\[[^\[\]\n]{1,40}\])/);
  return html`<${Fragment}>${parts.map((part, n) => (n % 2 ? html`<span class="marker">${part}</span>` : part))}<//>`;
}

/** @param {{value: number, max: number, label: string}} props */
export const Bar = ({ value, max, label }) =>
  html`<progress value=${value} max=${max} aria-label=${label}></progress>`;

/** How far a job is, in words. @param {{job: import("./state.js").Job}} props */
export function Progress({ job }) {
  if (job.status === "queued") return html`<span class="quiet">Waits: ${plain(job.waits_for ?? "")}</span>`;
  const now = job.progress;
  if (job.status === "cancelling") return html`<span class="quiet">Stops after this step</span>`;
  if (job.status !== "running") return null;
  if (!now) return html`<span class="quiet">Begins</span>`;
  const left = now.eta_s == null ? "" : `, ${lasting(Math.max(1, Math.ceil(now.eta_s)))} left`;
  return html`<span class="progress">
    <${Bar} value=${now.done} max=${now.total} label="progress of the job" />
    <span class="quiet">${now.stage}, ${now.done} of ${now.total}${left}</span>
  </span>`;
}

/** What was done last, with the way back. */
export function Undo() {
  const now = past.said.value;
  return html`<div class="undo" role="status" hidden=${!now}>
    ${now &&
    html`<span>${now.text}</span>
      ${now.step && html`<button type="button" onClick=${() => attempt(() => past.undo(now.step ?? undefined))}>Undo</button>`}
      <button type="button" class="bare" aria-label="Close" onClick=${past.hide}><${Icon} name="close" /></button>`}
  </div>`;
}

/**
 * A dialog of the browser's own, which keeps the focus inside.
 * @param {{open: boolean, onClose: () => void, label: string, children?: any}} props
 */
export function Dialog({ open, onClose, label, children }) {
  const ref = useRef(/** @type {any} */ (null));
  useEffect(() => {
    const dialog = ref.current;
    if (open && !dialog.open) dialog.showModal();
    if (!open && dialog.open) dialog.close();
  }, [open]);
  return html`<dialog ref=${ref} aria-label=${label} onClose=${onClose}
    onClick=${(/** @type {any} */ event) => event.target === ref.current && onClose()}>
    ${open && html`<div class="inside">${children}</div>`}
  </dialog>`;
}

/**
 * A text field that is as high as its words.
 * @param {{id: string, value: string, onInput: (text: string) => void, rows?: number, invalid?: boolean,
 *   describedby?: string, placeholder?: string}} props
 */
export function Area({ id, value, onInput, rows = 2, invalid = false, describedby = "", placeholder = "" }) {
  const ref = useRef(/** @type {any} */ (null));
  useLayoutEffect(() => {
    ref.current.style.height = "auto";
    ref.current.style.height = `${ref.current.scrollHeight + 2}px`;
  }, [value]);
  return html`<textarea id=${id} ref=${ref} rows=${rows} value=${value} maxlength="20000" placeholder=${placeholder}
    aria-invalid=${invalid} aria-describedby=${describedby || undefined}
    onInput=${(/** @type {any} */ event) => onInput(event.currentTarget.value)}></textarea>`;
}
