// @ts-check
// Fields made from the settings' own schema: ranges, choices and help are said once, in Python.
import { html } from "./lib.js";
import { change, draft, wrong } from "./draft.js";
import { plain, Wrong } from "./parts.js";
import { forms } from "./state.js";

/** @typedef {{type?: string, enum?: string[], minimum?: number, maximum?: number, exclusiveMinimum?: number,
 *   description?: string, default?: any, anyOf?: any[]}} Schema */

/** The schema of a setting, without null. @param {string} name @returns {Schema | null} */
export function schemaOf(name) {
  const found = forms.value.complete?.properties?.[name];
  if (!found) return null;
  const kinds = (found.anyOf ?? []).filter((/** @type {Schema} */ kind) => kind.type !== "null");
  return { ...(kinds.length === 1 ? kinds[0] : {}), ...found };
}

/**
 * The values as the API takes them.
 * @param {Record<string, string>} values as they stand in the fields
 * @returns {{input: Record<string, any>, wrong: Record<string, string>}}
 */
export function read(values) {
  /** @type {Record<string, any>} */
  const input = {};
  /** @type {Record<string, string>} */
  const bad = {};
  for (const [name, text] of Object.entries(values)) {
    const kind = schemaOf(name);
    if (!kind || text.trim() === "") continue;
    if (kind.type !== "integer" && kind.type !== "number") {
      input[name] = name === "size" ? text.trim().split(/\s*[x×]\s*/).map(Number) : text;
      continue;
    }
    const value = Number(text);
    if (!Number.isFinite(value) || (kind.type === "integer" && !Number.isSafeInteger(value))) {
      bad[name] = kind.type === "integer" ? "a whole number belongs here" : "a number belongs here";
    } else input[name] = value;
  }
  return { input, wrong: bad };
}

const LABELS = /** @type {Record<string, string>} */ ({ resample_from: "Resample from", negative: "Negative words", text: "Panels read" });
const label = (/** @type {string} */ name) => LABELS[name] ?? name.charAt(0).toUpperCase() + name.slice(1).replace(/_/g, " ");

/** An error as it reads beside its field, which need not be named. @param {any} error */
function here(error) {
  const found = /^invalid settings?: `\w+`: ([^;]+)$/.exec(error?.problem ?? "");
  return found ? { ...error, problem: found[1], advice: "" } : error;
}

/** One setting: label, field, help, and what is wrong with it. @param {{name: string, empty?: string}} props */
export function Setting({ name, empty }) {
  const kind = schemaOf(name);
  if (!kind) return null;
  const value = draft.value.values[name] ?? "";
  const error = wrong.value[name];
  const write = (/** @type {any} */ event) => {
    const { [name]: _, ...others } = wrong.value;
    wrong.value = others;
    change({ values: { ...draft.value.values, [name]: event.currentTarget.value } });
  };
  const shown = empty ?? (kind.default == null || kind.default === "" ? "as usual" : String(kind.default));
  const common = {
    id: `set-${name}`, value, onInput: write, "aria-invalid": Boolean(error),
    "aria-describedby": `help-${name}${error ? ` wrong-${name}` : ""}`,
  };
  return html`<div class="field">
    <label for=${common.id}>${label(name)}</label>
    ${kind.enum
      ? html`<select ...${common}><option value="">${shown}</option>${kind.enum.map((each) => html`<option>${each}</option>`)}</select>`
      : html`<input type="text" inputmode=${kind.type === "integer" ? "numeric" : kind.type === "number" ? "decimal" : "text"}
          placeholder=${shown} autocomplete="off" spellcheck="false" ...${common} />`}
    <${Wrong} error=${here(error)} id=${`wrong-${name}`} />
    <p class="help" id=${`help-${name}`}>${plain(kind.description ?? "")}</p>
  </div>`;
}
