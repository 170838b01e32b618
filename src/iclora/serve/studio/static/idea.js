// @ts-check
// Words of all panels from a line that says what the set is about, written by a captioner.
import { post, Problem } from "./api.js";
import { html, signal, useEffect } from "./lib.js";
import { change, draft, fill } from "./draft.js";
import { by } from "./keys.js";
import { attempt, Progress, Wrong } from "./parts.js";
import { jobs, know, offers } from "./state.js";

const wrong = signal(/** @type {Problem | null} */ (null));
const writer = signal("");

/** @param {{recipe: import("./state.js").Recipe}} props */
export function Idea({ recipe }) {
  const all = offers.value.captioners;
  const now = draft.value;
  const job = jobs.value.find((each) => each.id === now.asked);
  const live = job && job.ended === null;
  useEffect(() => {
    if (!job || job.ended === null) return;
    if (job.status === "succeeded") fill(/** @type {any} */ (job.result).prompt, "The words are written", { recipe: job.input.recipe, asked: "" });
    else {
      wrong.value = job.error ? new Problem(422, { ...job.error }) : null;
      change({ asked: "" });
    }
  }, [job?.status]);
  if (!all.length) return null;
  const write = async (/** @type {Event} */ event) => {
    event.preventDefault();
    if (!now.idea.trim()) {
      wrong.value = new Problem(422, { problem: "there is no idea yet", advice: "Write a line, such as: a shy boy at a carnival." });
      return;
    }
    wrong.value = null;
    try {
      const posted = await post("jobs", { kind: "prompt", input: { idea: now.idea, recipe: recipe.name, captioner: writer.value || all[0] } }, { "Idempotency-Key": crypto.randomUUID() });
      know(posted);
      change({ asked: posted.id });
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      wrong.value = error;
    }
  };
  return html`<form class="idea" onSubmit=${write}>
    <div class="field"><label for="idea">From an idea</label>
      <div class="ask"><input id="idea" type="text" maxlength="2000" autocomplete="off" placeholder="a shy boy at a carnival" value=${now.idea} aria-invalid=${Boolean(wrong.value)} aria-describedby="idea-wrong"
        onInput=${(/** @type {any} */ event) => { wrong.value = null; change({ idea: event.currentTarget.value }); }} />
      ${all.length > 1 && html`<select aria-label="Who writes" value=${writer.value} onChange=${(/** @type {any} */ event) => (writer.value = event.currentTarget.value)}>${all.map((name) => html`<option>${name}</option>`)}</select>`}
      <button disabled=${Boolean(live)}>Write the words</button></div></div>
    ${live && html`<div class="following"><${Progress} job=${job} /><button type="button" ...${by("make", "stop")} onClick=${() => attempt(async () => know(await post(`jobs/${job.id}/cancel`)))}>Cancel</button></div>`}
    <${Wrong} error=${wrong.value} id="idea-wrong" />
  </form>`;
}
