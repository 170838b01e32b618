// @ts-check
// A joint prompt by panels, and as one text: prefix, overview, then each panel behind its marker.

/** @typedef {{prefix: string, markers: string[]}} Form */

/**
 * The text of words by panel; empty if nothing is written.
 * @param {Form} form
 * @param {string} overview
 * @param {string[]} panels
 */
export function join(form, overview, panels) {
  const said = form.markers.map((_, n) => (panels[n] ?? "").trim());
  if (!overview.trim() && said.every((text) => !text)) return "";
  const parts = form.markers.map((marker, n) => `${marker} ${said[n]}`.trim());
  return [form.prefix, overview.trim(), ...parts].filter(Boolean).join(" ");
}

/**
 * The words of a text by panel; null if its markers are not the form's, in order.
 * @param {Form} form
 * @param {string} text
 */
export function split(form, text) {
  let rest = text.trim();
  if (form.prefix && rest.startsWith(form.prefix)) rest = rest.slice(form.prefix.length);
  if (!form.markers.some((marker) => rest.includes(marker))) return { overview: rest.trim(), panels: form.markers.map(() => "") };
  const parts = [];
  for (const marker of form.markers) {
    const at = rest.indexOf(marker);
    if (at < 0) return null;
    parts.push(rest.slice(0, at).trim());
    rest = rest.slice(at + marker.length);
  }
  if (form.markers.some((marker) => rest.includes(marker))) return null;
  return { overview: parts[0], panels: [...parts.slice(1), rest.trim()] };
}

/** "[SCENE-1]" as people read it: "Scene 1". @param {string} marker */
export function spoken(marker) {
  const plain = marker.replace(/[[\]]/g, "").replace(/[-_]/g, " ").toLowerCase();
  return plain.charAt(0).toUpperCase() + plain.slice(1);
}

/** A prompt without its markers, for where there is room for a line. @param {string} prompt */
export const unmarked = (prompt) => prompt.replace(/\[[^\[\]\n]{1,40}\]\s*/g, "");

/** Seconds as people say them. @param {number} seconds */
export function lasting(seconds) {
  if (seconds < 1) return "under a second";
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return `${(seconds / 3600).toFixed(1)} h`;
}

/** How long ago, in words. @param {number} at seconds since 1970 */
export function ago(at) {
  const seconds = Date.now() / 1000 - at;
  if (seconds < 60) return "just now";
  if (seconds < 3600) return `${Math.round(seconds / 60)} min ago`;
  if (seconds < 86400) return `${Math.round(seconds / 3600)} h ago`;
  return new Date(at * 1000).toLocaleDateString(undefined, { day: "numeric", month: "short", year: "numeric" });
}
