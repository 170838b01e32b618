// @ts-check
// The recipe's layout drawn to scale: each panel is a slot.
import { pictureAt, Problem, sendPicture, url } from "./api.js";
import { by } from "./keys.js";
import { html, signal, useEffect } from "./lib.js";
import { change, draft, wrong } from "./draft.js";
import { attempt, Icon, Picture, plain, Wrong } from "./parts.js";
import { reroll, shownRequest, wordsOf } from "./making.js";
import { sendToStory } from "./marks.js";
import { openPicture, requestOf } from "./opened.js";
import { go } from "./route.js";
import { spoken } from "./words.js";

/**
 * @typedef {{width: number, height: number, boxes: number[][], markers: string[],
 *   notes: Record<number, {text: string, exact: boolean}>, set: string, given: number[]}} Canvas
 */

/** The panel that keys act on. */
export const current = signal(1);
/** Slots that a picture is on its way to. */
const sending = signal(/** @type {number[]} */ ([]));

/** Given pictures that iclora made, by their hash. */
const offered = signal(/** @type {Record<string, File>} */ ({}));

/** @param {number} panel */
export function focusSlot(panel) {
  document.getElementById(`slot-${panel}`)?.focus();
}

/** Give a panel a picture. @param {number} panel @param {Blob | (() => Promise<Blob>)} from */
export async function give(panel, from) {
  sending.value = [...sending.value, panel];
  try {
    const { sha256, width, height } = await sendPicture(from instanceof Blob ? from : await from());
    const { [`slot ${panel}`]: _, given: __, ...others } = wrong.value;
    wrong.value = others;
    const given = { ...draft.value.given, [panel]: { sha: sha256, width, height } };
    change({ given, shown: "", keep: [] }, `Panel ${panel} is given`);
    // The picture is taken; what it was made of is offered beside it.
    if (from instanceof File && (await requestOf(from))) offered.value = { ...offered.value, [sha256]: from };
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    wrong.value = { ...wrong.value, [`slot ${panel}`]: error };
  } finally {
    sending.value = sending.value.filter((each) => each !== panel);
  }
}

/** Take a given picture away. @param {number} panel */
function takeAway(panel) {
  const { [panel]: _, ...given } = draft.value.given;
  change({ given }, `Panel ${panel} is empty again`);
}

/** Use a made panel's picture as given. @param {string} set @param {number} panel */
export async function useAsGiven(set, panel) {
  await give(panel, async () => new File([await pictureAt(url(`sets/${set}/panels/${panel}.png`))], `panel-${panel}.png`, { type: "image/png" }));
}

/** Keep a made panel, or not. @param {number} panel */
export function toggleKeep(panel) {
  const { keep, shown } = draft.value;
  if (!shown) return;
  change({ keep: keep.includes(panel) ? keep.filter((each) => each !== panel) : [...keep, panel] });
}

const pictureIn = (/** @type {DataTransfer | null} */ from) =>
  [...(from?.files ?? [])].find((file) => file.type.startsWith("image/") || /\.(heic|tiff?)$/i.test(file.name));

/** All slots. @param {{canvas: Canvas}} props */
export function Slots({ canvas }) {
  useEffect(() => {
    const paste = (/** @type {ClipboardEvent} */ event) => {
      const file = pictureIn(event.clipboardData);
      if (!file) return;
      event.preventDefault();
      const all = canvas.boxes.map((_, n) => n + 1);
      const focused = Number(document.activeElement?.closest("[data-panel]")?.getAttribute("data-panel"));
      const panel = focused || all.find((n) => !draft.value.given[n]) || 1;
      give(panel, file);
    };
    addEventListener("paste", paste);
    return () => removeEventListener("paste", paste);
  }, [canvas.boxes.length]);
  const style = { aspectRatio: `${canvas.width} / ${canvas.height}`, "--shape": canvas.width / canvas.height };
  return html`<div class="canvas" style=${style}>
    ${canvas.boxes.map((box, n) => html`<${Slot} key=${n} panel=${n + 1} box=${box} canvas=${canvas} />`)}
  </div>`;
}

/** @param {{panel: number, box: number[], canvas: Canvas}} props */
function Slot({ panel, box, canvas }) {
  const now = draft.value;
  const name = canvas.markers[panel - 1] ? spoken(canvas.markers[panel - 1]) : `Panel ${panel}`;
  const given = canvas.set ? null : now.given[panel];
  const made = canvas.set && !canvas.given.includes(panel);
  const kept = Boolean(canvas.set) && now.keep.includes(panel);
  const src = canvas.set ? url(`sets/${canvas.set}/panels/${panel}.png`) : given && url(`assets/${given.sha}`);
  const note = canvas.notes[panel];
  const state = kept ? "kept" : canvas.set ? (made ? "made" : "given") : given ? "given" : "will be made";
  const over = signalOver(panel);
  const drop = (/** @type {DragEvent} */ event) => {
    event.preventDefault();
    over(false);
    const file = pictureIn(event.dataTransfer);
    if (file) give(panel, file);
    else wrong.value = { ...wrong.value, [`slot ${panel}`]: new Problem(422, { problem: "this is no picture", advice: "Drop a PNG, JPEG or WebP file." }) };
  };
  const choose = (/** @type {any} */ event) => {
    const file = event.currentTarget.files[0];
    event.currentTarget.value = "";
    if (file) give(panel, file);
  };
  return html`<div id=${`slot-${panel}`} data-panel=${panel} data-acts tabindex="0" role="group"
    class=${`slot ${src ? "full" : "empty"} ${kept ? "kept" : ""} ${src && !made ? "given" : ""} ${hovered.value === panel ? "over" : ""}`}
    aria-label=${`${name}, panel ${panel}: ${state}`}
    style=${{ left: share(box[0], canvas.width), top: share(box[1], canvas.height), width: share(box[2], canvas.width), height: share(box[3], canvas.height) }}
    onFocusIn=${() => (current.value = panel)}
    onDragOver=${(/** @type {DragEvent} */ event) => { event.preventDefault(); over(true); }}
    onDragLeave=${() => over(false)} onDrop=${drop}>
    ${src && html`<${Picture} src=${src} alt=${`${name}, ${state}`} eager=${true} />`}
    <div class="tag"><b>${panel}</b> <span>${name}</span>${src ? html` <i>${state}</i>` : ""}</div>
    ${sending.value.includes(panel) && html`<p class="middle" role="status">Sending the picture</p>`}
    ${!src && !sending.value.includes(panel) && html`<p class="middle quiet">will be made</p>`}
    <div class="tools">
      ${made && html`
        <button type="button" ...${by("make", "again")} aria-label=${`Make panel ${panel} again`} onClick=${() => reroll([panel])}><${Icon} name="again" /></button>
        <button type="button" ...${by("make", "keep")} aria-label=${`Keep panel ${panel}`} aria-pressed=${kept} onClick=${() => toggleKeep(panel)}><${Icon} name=${kept ? "lock" : "open"} /></button>
        <button type="button" ...${by("make", "use")} aria-label=${`Use panel ${panel} as given`} onClick=${() => useAsGiven(canvas.set, panel)}><${Icon} name="use" /></button>
        <button type="button" ...${by("make", "tell")} aria-label=${`Send panel ${panel} to the story`} onClick=${() => shownRequest.value && sendToStory(canvas.set, [panel], { ...wordsOf(canvas.set, shownRequest.value, {}), adapter: now.adapter })}><${Icon} name="story" /></button>
        <button type="button" ...${by("make", "versions")} aria-label=${`Compare panel ${panel} with its other versions`} onClick=${() => go(`compare?of=${canvas.set}&panel=${panel}`)}><${Icon} name="pair" /></button>`}
      ${!canvas.set && html`<label class="button" title=${by("make", "choose").title}>
          <input type="file" ...${by("make", "choose")} accept="image/*,.heic,.tif,.tiff" class="unseen" aria-label=${`Choose a picture for panel ${panel}`} onChange=${choose} />
          <${Icon} name="picture" />${!given && html` <span>Give a picture</span>`}</label>`}
      ${given && html`<button type="button" ...${by("make", "away")} aria-label=${`Take the picture of panel ${panel} away`} onClick=${() => takeAway(panel)}><${Icon} name="close" /></button>`}
    </div>
    ${given && note && html`<p class=${`note ${note.exact ? "" : "changes"}`}>${plain(note.text)}</p>`}
    ${given && offered.value[given.sha] && html`<p class="note ours">iclora made this picture.
      <button type="button" class="link" ...${by("make", "request")} onClick=${() => attempt(() => openPicture(offered.value[given.sha]))}>Open what it was made of</button></p>`}
    <${Wrong} error=${wrong.value[`slot ${panel}`]} />
  </div>`;
}

const share = (/** @type {number} */ part, /** @type {number} */ whole) => `${(100 * part) / whole}%`;
const hovered = signal(0);
const signalOver = (/** @type {number} */ panel) => (/** @type {boolean} */ is) => {
  if (is) hovered.value = panel;
  else if (hovered.value === panel) hovered.value = 0;
};
