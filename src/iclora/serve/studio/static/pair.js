// @ts-check
// Two pictures of one thing: side by side, one over the other with a slider, or in turn.
import { html, signal, useState } from "./lib.js";
import { by, useKeys } from "./keys.js";
import { Picture } from "./parts.js";

/** @typedef {{src: string, name: string}} Side */

const WAYS = /** @type {const} */ ([["beside", "Side by side"], ["slide", "Slider"], ["blink", "Blink"]]);

/** @typedef {"beside" | "slide" | "blink"} Way */
/** One for all pairs of a screen: a key turns all of them. */
const shown = signal(/** @type {Way} */ ("beside"));
const turned = signal(true);

/**
 * @param {{left: Side, right: Side, about: string}} props
 *   about: what both show, for those who do not see it
 */
export function Pair({ left, right, about }) {
  const [share, setShare] = useState(50);
  const way = shown.value;
  const second = turned.value;
  const setWay = (/** @type {Way} */ to) => (shown.value = to);
  const turn = () => (turned.value = !turned.value);
  useKeys("pair", { blink: () => { if (way === "blink") turn(); else setWay("blink"); }, beside: () => setWay("beside"), slide: () => setWay("slide") });
  const one = (/** @type {Side} */ side) => html`<figure><${Picture} src=${side.src} alt=${`${about}: ${side.name}`} eager=${true} /><figcaption>${side.name}</figcaption></figure>`;
  return html`<div class="pair-of">
    <div class="switch" role="group" aria-label="How the two are shown">
      ${WAYS.map(([name, label]) => html`<button type="button" key=${name} aria-pressed=${way === name} title=${by("pair", name).title} onClick=${() => setWay(name)}>${label}</button>`)}</div>
    ${way === "beside" && html`<div class="both">${one(left)}${one(right)}</div>`}
    ${way === "slide" && html`<div class="over" style=${{ "--share": `${share}%` }}>
      <${Picture} src=${left.src} alt=${`${about}: ${left.name}`} eager=${true} />
      <${Picture} class="top" src=${right.src} alt=${`${about}: ${right.name}`} eager=${true} /></div>
      <label class="slider"><span>${left.name}</span><input type="range" min="0" max="100" value=${share} aria-label=${`How much of ${left.name} is shown`} onInput=${(/** @type {any} */ event) => setShare(Number(event.currentTarget.value))} /><span>${right.name}</span></label>`}
    ${way === "blink" && html`<button type="button" class="over blink" title="Space" aria-label=${`Show the other: now ${(second ? right : left).name}`} onClick=${turn}>
      <${Picture} src=${left.src} alt="" eager=${true} /><${Picture} class=${second ? "top whole" : "top gone"} src=${right.src} alt="" eager=${true} /></button>
      <p class="quiet" aria-live="polite">${(second ? right : left).name} · Space shows the other</p>`}
  </div>`;
}
