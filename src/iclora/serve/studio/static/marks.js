// @ts-check
// Made sets that are marked to be compared, and where panels are sent on to.
import { pictureAt, place, sendPicture, url } from "./api.js";
import { signal } from "./lib.js";
import { attempt } from "./parts.js";
import { go } from "./route.js";
import { tell } from "./story.js";
import { done } from "./undo.js";

const KEPT = `iclora marks ${place}`;
export const marks = signal(/** @type {string[]} */ (JSON.parse(localStorage.getItem(KEPT) ?? "[]")));

/** @param {string[]} ids */
export function setMarks(ids) {
  marks.value = ids.slice(-9);
  localStorage.setItem(KEPT, JSON.stringify(marks.value));
}

/** Mark a set, or not. @param {string} id */
export const mark = (id) => setMarks(marks.value.includes(id) ? marks.value.filter((each) => each !== id) : [...marks.value, id]);

/** Show a set beside those that are marked. @param {string} id */
export function compareWith(id) {
  if (!marks.value.includes(id)) setMarks([...marks.value, id]);
  go(`compare?sets=${marks.value.join(",")}`);
}

/**
 * Put panels of a made set into the story, with their words.
 * @param {string} set @param {number[]} panels @param {{overview: string, panels: string[], recipe: string, adapter: string}} from
 */
export const sendToStory = (set, panels, from) => attempt(async () => {
  await tell.restore();
  const sent = [];
  for (const panel of panels) {
    const picture = await pictureAt(url(`sets/${set}/panels/${panel}.png`));
    const { sha256 } = await sendPicture(new File([picture], "panel.png", { type: "image/png" }));
    sent.push({ ...tell.blank(from.panels[panel - 1] ?? ""), sha: sha256 });
  }
  // Read last: a story that is made fills its lines meanwhile.
  const before = tell.draft.value;
  const used = before.lines.filter((line) => line.words || line.sha || line.job);
  const lines = [...used, ...sent];
  const opening = used.length ? {} : { overview: from.overview, recipe: from.recipe, adapter: from.adapter };
  tell.change({ lines: [...lines, ...(panels.length > 1 ? [tell.blank()] : [])], ...opening });
  done(panels.length > 1 ? "The set is in the story" : `Panel ${panels[0]} is in the story`, () => tell.change({ lines: before.lines, overview: before.overview }));
});

