// @ts-check
// Borders of a composite that are moved by hand, where no seam was found or a wrong one.
import { call, get, place as server, Problem } from "./api.js";
import { html, useEffect, useRef, useState } from "./lib.js";
import { asKnown, at, edit, picture } from "./data.js";
import { by as keyed } from "./keys.js";
import { Picture, Wrong } from "./parts.js";

const GRID = 16;
const LEAST = 8;

/**
 * @typedef {{axis: 0 | 1, edges: [number, 0 | 1][], name: string}} Border
 *   axis 0 is moved left and right, 1 up and down; edges are of boxes, by number and side
 */

/** Where a border lies, px. @param {number[][]} boxes @param {Border} border */
export const place = (boxes, { axis, edges: [[n, end]] }) => boxes[n][axis] + (end ? boxes[n][2 + axis] : 0);

/**
 * The borders of boxes: of rows, the edges between and around them; of free boxes, each of their own. Neighbours that
 * touch share one.
 * @param {number[][]} boxes @param {number[]} perRow @returns {Border[]}
 */
export function bordersOf(boxes, perRow) {
  const rows = perRow.reduce((all, count) => [...all, Array.from({ length: count }, (_, n) => all.flat().length + n)], /** @type {number[][]} */ ([]));
  if (!rows.length) rows.push(...boxes.map((_, n) => [n]));
  /** @type {Border[]} */
  const found = [];
  const add = (/** @type {0 | 1} */ axis, /** @type {[number, 0 | 1][]} */ edges, /** @type {string} */ name) => found.push({ axis, edges, name });
  const ends = (/** @type {number[]} */ row, /** @type {0 | 1} */ end) => row.map((n) => /** @type {[number, 0 | 1]} */ ([n, end]));
  const joint = (/** @type {0 | 1} */ axis, /** @type {number[]} */ before, /** @type {number[]} */ after, /** @type {string} */ name) => {
    const gap = boxes[after[0]][axis] - (boxes[before[0]][axis] + boxes[before[0]][2 + axis]);
    if (gap === 0) add(axis, [...ends(before, 1), ...ends(after, 0)], `border ${name}`);
    else {
      add(axis, ends(before, 1), `end of panel ${before.map((n) => n + 1).join(", ")}`);
      add(axis, ends(after, 0), `start of panel ${after.map((n) => n + 1).join(", ")}`);
    }
  };
  if (!perRow.length) {
    boxes.forEach((_, n) => {
      for (const [axis, end, name] of /** @type {[0 | 1, 0 | 1, string][]} */ ([[0, 0, "left"], [0, 1, "right"], [1, 0, "top"], [1, 1, "bottom"]])) add(axis, [[n, end]], `${name} of panel ${n + 1}`);
    });
    return found;
  }
  add(1, ends(rows[0], 0), "top");
  rows.forEach((row, r) => {
    if (r) joint(1, rows[r - 1], row, `above panel ${row.map((n) => n + 1).join(", ")}`);
    row.forEach((n, c) => c && joint(0, [row[c - 1]], [n], `between panels ${row[c - 1] + 1} and ${n + 1}`));
  });
  add(1, ends(/** @type {number[]} */ (rows.at(-1)), 1), "bottom");
  add(0, rows.map((row) => /** @type {[number, 0]} */ ([row[0], 0])), "left");
  add(0, rows.map((row) => /** @type {[number, 1]} */ ([/** @type {number} */ (row.at(-1)), 1])), "right");
  return found;
}

/**
 * Boxes with a border moved, as far as its panels leave room.
 * @param {number[][]} boxes @param {number[]} size @param {Border} border @param {number} to px
 */
export function moved(boxes, size, { axis, edges }, to) {
  let [low, high] = [0, size[axis]];
  for (const [n, end] of edges) {
    const start = boxes[n][axis];
    const stop = start + boxes[n][2 + axis];
    if (end) {
      low = Math.max(low, start + LEAST);
      // Not over the panel behind it, unless that one is moved along.
      for (const [m, other] of boxes.entries()) if (!edges.some(([k]) => k === m) && overlaps(boxes[n], other, axis) && other[axis] >= stop) high = Math.min(high, other[axis]);
    } else {
      high = Math.min(high, stop - LEAST);
      for (const [m, other] of boxes.entries()) if (!edges.some(([k]) => k === m) && overlaps(boxes[n], other, axis) && other[axis] + other[2 + axis] <= start) low = Math.max(low, other[axis] + other[2 + axis]);
    }
  }
  const line = Math.round(Math.min(high, Math.max(low, to)));
  return boxes.map((box, n) => {
    const now = [...box];
    for (const [m, end] of edges) {
      if (m !== n) continue;
      if (end) now[2 + axis] = line - now[axis];
      else {
        now[2 + axis] = now[axis] + now[2 + axis] - line;
        now[axis] = line;
      }
    }
    return now;
  });
}

/** Whether two boxes share lines across an axis. @param {number[]} a @param {number[]} b @param {0 | 1} axis */
function overlaps(a, b, axis) {
  const other = 1 - axis;
  return a[other] < b[other] + b[2 + other] && b[other] < a[other] + a[2 + other];
}

/** @param {{dataset: import("./data.js").Dataset, one: import("./data.js").OneImageSet, close: () => void, after: () => any}} props */
export function Borders({ dataset, one, close, after }) {
  const [seen, setSeen] = useState(/** @type {any} */ (null));
  const [boxes, setBoxes] = useState(/** @type {number[][]} */ ([]));
  const [error, setError] = useState(/** @type {Problem | null} */ (null));
  const [busy, setBusy] = useState(false);
  const stage = useRef(/** @type {any} */ (null));
  const path = at(dataset.id, one.name);
  // What is moved and not cut yet is there after a reload, unless the file is another one by then.
  const key = `iclora borders ${server}${path}`;
  useEffect(() => {
    get(`${path}/boxes`).then((found) => {
      const left = JSON.parse(localStorage.getItem(key) ?? "null");
      setSeen(found);
      setBoxes(left?.stamp === one.stamp ? left.boxes : found.boxes);
    }, setError);
  }, [one.stamp]);
  if (!seen) return error ? html`<${Wrong} error=${error} /><button type="button" onClick=${close}>Close</button>` : html`<p class="quiet" role="status">Looking for its borders</p>`;
  const size = [seen.width, seen.height];
  const perRow = dataset.form.per_row;
  const borders = bordersOf(boxes, perRow);
  // On a composite that lies on the token grid, so do its borders; elsewhere they are where the pictures end.
  const step = [...size, ...seen.boxes.flat()].every((edge) => edge % GRID === 0) ? GRID : 1;
  const move = (/** @type {Border} */ border, /** @type {number} */ to) => {
    const now = moved(boxes, size, border, to);
    setBoxes(now);
    localStorage.setItem(key, JSON.stringify({ stamp: one.stamp, boxes: now }));
  };
  const back = () => {
    localStorage.removeItem(key);
    setBoxes(seen.boxes);
  };
  const leave = () => {
    localStorage.removeItem(key);
    close();
  };
  const moves = (/** @type {KeyboardEvent} */ event, /** @type {Border} */ border) => {
    const by = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 }[event.key];
    if (!by) return;
    event.preventDefault();
    event.stopPropagation();
    const now = place(boxes, border);
    const wide = event.shiftKey ? 1 : step;
    move(border, wide === 1 ? now + by : (by > 0 ? Math.floor(now / wide) + 1 : Math.ceil(now / wide) - 1) * wide);
  };
  const grab = (/** @type {PointerEvent} */ event, /** @type {Border} */ border) => {
    const handle = /** @type {HTMLElement} */ (event.currentTarget);
    handle.setPointerCapture(event.pointerId);
    const drag = (/** @type {PointerEvent} */ now) => {
      const around = stage.current.getBoundingClientRect();
      const share = border.axis ? (now.clientY - around.top) / around.height : (now.clientX - around.left) / around.width;
      const wide = now.shiftKey ? 1 : step;
      move(border, Math.round((share * size[border.axis]) / wide) * wide);
    };
    const drop = () => {
      handle.removeEventListener("pointermove", drag);
      handle.removeEventListener("pointerup", drop);
      handle.removeEventListener("pointercancel", drop);
    };
    handle.addEventListener("pointermove", drag);
    handle.addEventListener("pointerup", drop);
    handle.addEventListener("pointercancel", drop);
  };
  const same = JSON.stringify(boxes) === JSON.stringify(seen.boxes);
  const save = async () => {
    setBusy(true);
    setError(null);
    try {
      const done = await edit(dataset.id, `Borders of ${one.name} are moved`, () => call("PUT", `${path}/boxes`, { boxes }, asKnown(one)), after);
      if (done) leave();
    } finally {
      setBusy(false);
    }
  };
  const percent = (/** @type {number} */ part, /** @type {0 | 1} */ axis) => `${(100 * part) / size[axis]}%`;
  return html`<div class="canvas borders" ref=${stage} style=${{ aspectRatio: `${size[0]} / ${size[1]}`, "--shape": size[0] / size[1] }}>
      <${Picture} src=${picture(dataset.id, one, "file", 1536)} alt=${`The picture of set ${one.name}`} eager=${true} />
      ${boxes.map((box, n) => html`<div class="piece" key=${n} style=${{ left: percent(box[0], 0), top: percent(box[1], 1), width: percent(box[2], 0), height: percent(box[3], 1) }}><b>${n + 1}</b></div>`)}
      ${borders.map((border, n) => html`<div key=${n} class=${`handle ${border.axis ? "flat" : "tall"}`} role="slider" tabindex="0" aria-label=${border.name}
        aria-orientation=${border.axis ? "vertical" : "horizontal"} aria-valuemin="0" aria-valuemax=${size[border.axis]} aria-valuenow=${place(boxes, border)} aria-valuetext=${`${place(boxes, border)} px`}
        style=${span(boxes, border, percent)} onKeyDown=${(/** @type {any} */ event) => moves(event, border)} onPointerDown=${(/** @type {any} */ event) => grab(event, border)}></div>`)}
    </div>
    <p class="quiet size">${size[0]} × ${size[1]} px${seen.unseen ? html`<span>${seen.unseen} ${seen.unseen === 1 ? "border does" : "borders do"} not show</span>` : ""}
      <span>${step > 1 ? `arrows move by ${step} px, with Shift by 1` : "arrows move by 1 px"}</span></p>
    <${Wrong} error=${error} />
    <div class="buttons"><button type="button" class="main" disabled=${same || busy} ...${keyed("one", "cut")} onClick=${save}>Cut here</button>
      <button type="button" disabled=${same} ...${keyed("one", "was")} onClick=${back}>As it was</button>
      <button type="button" ...${keyed("one", "borders", "Close")} onClick=${leave}>Close</button></div>`;
}

/** Where a handle lies along its border. @param {number[][]} boxes @param {Border} border @param {(part: number, axis: 0 | 1) => string} percent */
function span(boxes, border, percent) {
  const across = /** @type {0 | 1} */ (1 - border.axis);
  const starts = border.edges.map(([n]) => boxes[n][across]);
  const ends = border.edges.map(([n]) => boxes[n][across] + boxes[n][2 + across]);
  const from = Math.min(...starts);
  const long = percent(Math.max(...ends) - from, across);
  const at = percent(place(boxes, border), border.axis);
  return border.axis ? { top: at, left: percent(from, 0), width: long } : { left: at, top: percent(from, 1), height: long };
}
