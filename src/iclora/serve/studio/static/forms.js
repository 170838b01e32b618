// @ts-check
// Fields made from the settings' own schema: ranges, choices and help are said once, in Python.
import { html } from "./lib.js";
import { change, draft, wrong } from "./draft.js";
import { plain, Wrong } from "./parts.js";
import { forms } from "./state.js";

/** @typedef {{type?: string, enum?: string[], minimum?: number, maximum?: number, exclusiveMinimum?: number,
 *   description?: string, default?: any, anyOf?: any[], items?: any, prefixItems?: any[]}} Schema */

/** The schema of a setting of a kind of job, without null. @param {string} form @param {string} name @returns {Schema | null} */
export function schemaIn(form, name) {
  const found = forms.value[form]?.properties?.[name];
  if (!found) return null;
  const kinds = (found.anyOf ?? []).filter((/** @type {Schema} */ kind) => kind.type !== "null");
  return { ...(kinds.length === 1 ? kinds[0] : {}), ...found };
}

export const schemaOf = (/** @type {string} */ name) => schemaIn("complete", name);

const YES = /** @type {Record<string, boolean>} */ ({ yes: true, no: false });
const numeric = (/** @type {Schema} */ kind) => kind.type === "integer" || kind.type === "number";

/** One value of a kind; undefined if the text is none. @param {Schema} kind @param {string} text */
function valueOf(kind, text) {
  if (kind.type === "boolean") return YES[text];
  if (kind.anyOf && !kind.type && !kind.enum) return Number.isFinite(Number(text)) ? Number(text) : text;
  if (!numeric(kind)) return text;
  const value = Number(text);
  return Number.isFinite(value) && (kind.type === "number" || Number.isSafeInteger(value)) ? value : undefined;
}

/**
 * The values as the API takes them.
 * @param {Record<string, string>} values as they stand in the fields
 * @param {string} [form] kind of job
 * @returns {{input: Record<string, any>, wrong: Record<string, string>}}
 */
export function read(values, form = "complete") {
  /** @type {Record<string, any>} */
  const input = {};
  /** @type {Record<string, string>} */
  const bad = {};
  for (const [name, text] of Object.entries(values)) {
    const kind = schemaIn(form, name);
    if (!kind || text.trim() === "") continue;
    const each = kind.items ?? kind;
    let value;
    if (kind.prefixItems) value = text.trim().split(/\s*[x×]\s*/).map(Number);
    else if (kind.items) {
      const parts = (numeric(each) ? text.split(/[\s,]+/) : text.split("\n")).filter((part) => part.trim());
      value = parts.map((part) => valueOf(each, part.trim()));
      if (value.includes(undefined)) value = undefined;
    } else value = valueOf(kind, numeric(kind) ? text.trim() : text);
    if (value === undefined) bad[name] = each.type === "integer" ? "a whole number belongs here" : "a number belongs here";
    else input[name] = value;
  }
  return { input, wrong: bad };
}

const LABELS = /** @type {Record<string, string>} */ ({
  resample_from: "Resample from", negative: "Negative words", text: "Panels read", lr: "Learning rate", ema: "Averaging (EMA)",
  held_out: "Held out", conditional: "Learns to complete", vram: "Memory of the card",
});
export const label = (/** @type {string} */ name) => LABELS[name] ?? name.charAt(0).toUpperCase() + name.slice(1).replace(/_/g, " ");

/** A value of the server's as it stands in a field. @param {any} value */
export const written = (value) =>
  value == null || value === "" ? "" : Array.isArray(value) ? value.join(" ") : value === true ? "yes" : value === false ? "no" : String(value);

/** An error as it reads beside its field, which need not be named. @param {any} error */
function here(error) {
  const found = /^invalid settings?: `\w+`: ([^;]+)$/.exec(error?.problem ?? "");
  return found ? { ...error, problem: found[1], advice: "" } : error;
}

/**
 * One setting: label, field, help, and what is wrong with it.
 * @param {{form: string, name: string, value: string, onValue: (text: string) => void, error?: any, empty?: string,
 *   title?: string}} props
 */
export function Field({ form, name, value, onValue, error, empty, title }) {
  const kind = schemaIn(form, name);
  if (!kind) return null;
  const shown = empty ?? (written(kind.default) || "as usual");
  const id = `${form === "complete" ? "set" : form}-${name}`;
  const common = {
    id, value, onInput: (/** @type {any} */ event) => onValue(event.currentTarget.value), "aria-invalid": Boolean(error),
    "aria-describedby": `help-${id}${error ? ` wrong-${name}` : ""}`,
  };
  const choices = kind.enum ?? (kind.type === "boolean" ? Object.keys(YES) : null);
  const lines = kind.items && !numeric(kind.items) && !kind.items.enum;
  return html`<div class=${`field ${lines ? "wide" : ""}`}>
    <label for=${id}>${title ?? label(name)}</label>
    ${choices
      ? html`<select ...${common}><option value="">${shown}</option>${choices.map((each) => html`<option>${each}</option>`)}</select>`
      : lines
        ? html`<textarea rows="3" placeholder=${shown} ...${common}></textarea>`
        : html`<input type="text" inputmode=${kind.type === "integer" ? "numeric" : kind.type === "number" ? "decimal" : "text"}
          placeholder=${shown} autocomplete="off" spellcheck="false" ...${common} />`}
    <${Wrong} error=${here(error)} id=${`wrong-${name}`} />
    <p class="help" id=${`help-${id}`}>${plain(kind.description ?? "")}</p>
  </div>`;
}

/** A setting of Make. @param {{name: string, empty?: string}} props */
export function Setting({ name, empty }) {
  const write = (/** @type {string} */ text) => {
    const { [name]: _, ...others } = wrong.value;
    wrong.value = others;
    change({ values: { ...draft.value.values, [name]: text } });
  };
  return html`<${Field} form="complete" name=${name} value=${draft.value.values[name] ?? ""} onValue=${write} error=${wrong.value[name]} empty=${empty} />`;
}
