// @ts-check
// Curves over steps, drawn as SVG in the page's own colours.
import { html, useEffect, useRef, useState } from "./lib.js";

/**
 * @typedef {{name: string, kind: "dots" | "mean" | "held" | "trained", points: number[][]}} Series
 */

const HEIGHT = 240;
const LEFT = 46;
const BELOW = 26;
const MOST = 500;

/** Some round numbers between two. @param {number} low @param {number} high @param {number} count */
function ticks(low, high, count) {
  const raw = (high - low || 1) / count;
  const unit = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((n) => n * unit).find((n) => n >= raw) ?? unit;
  const found = [];
  for (let at = Math.ceil(low / step) * step; at <= high + step / 1e6; at += step) found.push(Number(at.toPrecision(12)));
  return found;
}

/** The mean of some 20 steps, as plots of a run draw it. @param {number[][]} points */
export function smoothed(points) {
  let mean = points[0]?.[1] ?? 0;
  return points.map(([step, loss]) => [step, (mean += (loss - mean) * 0.05)]);
}

/** Every so many of them, for a screen has no more pixels. @param {number[][]} points */
const thinned = (points) => (points.length <= MOST ? points : points.filter((_, n) => n % Math.ceil(points.length / MOST) === 0 || n === points.length - 1));

/**
 * @param {{series: Series[], last: number, label: string}} props
 *   last: the step at the right edge
 */
export function Chart({ series, last, label }) {
  const ref = useRef(/** @type {any} */ (null));
  const [width, setWidth] = useState(600);
  const [at, setAt] = useState(/** @type {number | null} */ (null));
  useEffect(() => {
    const seen = new ResizeObserver(([entry]) => setWidth(Math.max(240, entry.contentRect.width)));
    seen.observe(ref.current);
    return () => seen.disconnect();
  }, []);
  const drawn = series.filter((each) => each.points.length);
  const lines = drawn.filter((each) => each.kind !== "dots").flatMap((each) => each.points.map(([, y]) => y));
  const dots = drawn.filter((each) => each.kind === "dots").flatMap((each) => each.points.map(([, y]) => y)).sort((a, b) => a - b);
  // Single losses differ tenfold: the highest few are left outside.
  const values = [...lines, ...dots.slice(0, Math.ceil(dots.length * 0.97))];
  const low = Math.min(...values);
  const high = Math.max(...values, low + 1e-6);
  const bottom = Math.max(0, low - (high - low) * 0.08);
  const x = (/** @type {number} */ step) => LEFT + ((width - LEFT - 8) * step) / Math.max(1, last);
  const y = (/** @type {number} */ loss) => 8 + (HEIGHT - BELOW - 8) * (1 - (Math.min(loss, high) - bottom) / (high - bottom));
  const path = (/** @type {number[][]} */ points) => thinned(points).map(([a, b], n) => `${n ? "L" : "M"}${x(a).toFixed(1)} ${y(b).toFixed(1)}`).join("");
  const move = (/** @type {any} */ event) => {
    const box = event.currentTarget.getBoundingClientRect();
    setAt(Math.round(((event.clientX - box.left - LEFT) / Math.max(1, box.width - LEFT - 8)) * last));
  };
  const near = (/** @type {Series} */ each) => {
    if (at === null) return null;
    return each.points.reduce((best, point) => (Math.abs(point[0] - at) < Math.abs(best[0] - at) ? point : best), each.points[0]);
  };
  const said = drawn.map((each) => ({ each, point: near(each) ?? each.points.at(-1) }));
  return html`<figure class="chart" ref=${ref}>
    <svg role="img" aria-label=${label} width=${width} height=${HEIGHT} viewBox=${`0 0 ${width} ${HEIGHT}`} onPointerMove=${move} onPointerLeave=${() => setAt(null)}>
      ${drawn.length > 0 && ticks(bottom, high, 4).map((value) => html`<g key=${value}><line class="grid" x1=${LEFT} x2=${width - 8} y1=${y(value)} y2=${y(value)} />
        <text x=${LEFT - 8} y=${y(value) + 4} text-anchor="end">${value}</text></g>`)}
      ${ticks(0, last, width < 500 ? 3 : 6).map((value) => html`<text key=${value} x=${x(value)} y=${HEIGHT - 6} text-anchor=${value ? (value === last ? "end" : "middle") : "start"}>${value}</text>`)}
      ${drawn.map((each) => (each.kind === "dots"
        ? html`<path class="dots" d=${thinned(each.points).map(([a, b]) => `M${x(a).toFixed(1)} ${y(b).toFixed(1)}h0`).join("")} />`
        : html`<path class=${each.kind} d=${path(each.points)} />
          ${each.points.length < 60 && each.kind !== "mean" && each.points.map(([a, b]) => html`<circle class=${each.kind} cx=${x(a)} cy=${y(b)} r="2.5" />`)}`))}
      ${at !== null && said[0]?.point && html`<line class="here" x1=${x(said[0].point[0])} x2=${x(said[0].point[0])} y1="8" y2=${HEIGHT - BELOW} />`}
    </svg>
    <figcaption>${said.map(({ each, point }) => html`<span key=${each.name}><i class=${each.kind} aria-hidden="true"></i>${each.name} ${point && html`<b>${point[1].toFixed(3)}</b> <span class="quiet">at step ${point[0]}</span>`}</span>`)}</figcaption>
  </figure>`;
}
