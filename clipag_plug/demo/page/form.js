// What is asked for: the form, its words, and settings that it takes over from a picture.

import { $, address, ask, make, problem, shared } from "./dom.js";
import { choose, chosen } from "./look.js";

const EXAMPLES = ["a goldfish", "a lemon", "a school bus", "a jellyfish", "a king penguin", "a brown bear"];
export const WORDS = { paint: "Paint", style: "Restyle", draw: "Draw", explain: "Explain" };
const SEEDS = 10 ** 6;

let changed = () => {};  // told when another tab is chosen

export function go(tab) {
  shared.tab = tab;
  document.body.dataset.tab = tab;
  for (const button of document.querySelectorAll("nav button")) {
    if (button.dataset.go === tab) button.setAttribute("aria-current", "page");
    else button.removeAttribute("aria-current");
  }
  for (const element of document.querySelectorAll("[data-for]")) {
    element.hidden = !element.dataset.for.split(" ").includes(tab);
  }
  $("freedom").hidden = tab !== "style" || $("way").value !== "paint";
  $("prompt").required = tab !== "explain";
  $("prompt").placeholder = tab === "style" ? "a coral reef" : "a goldfish";
  $("go").textContent = WORDS[tab];
  const usual = tab === "draw" ? 100 : tab === "style" && $("way").value === "style" ? 80 : null;
  $("steps").placeholder = usual || (shared.state ? shared.state.presets[$("preset").value] : "");
  problem("");
  changed();
}

function fill(select, values, chosenValue) {
  select.replaceChildren(...values.map(([value, text]) => make("option", { value }, text)));
  select.value = chosenValue;
}

export const anySeed = () => Math.floor(Math.random() * SEEDS);

// The request for what the form says; count: pictures of one model.
export function request(count = 1) {
  let models = [$("model-a").value, $("model-b").value].filter(Boolean);
  if (shared.tab === "explain") {
    const texts = $("texts").value.split("\n").map((line) => line.trim()).filter(Boolean);
    return { kind: "explain", request: { models, picture: chosen(), texts, method: $("method").value } };
  }
  if (count > 1) models = models.slice(-1);
  const seed = $("seed").value === "" ? anySeed() : Number($("seed").value);
  const asked = { models, prompt: $("prompt").value.trim(), seed };
  if ($("steps").value) asked.steps = Number($("steps").value);
  if (shared.tab === "draw") return { kind: "draw", request: { ...asked, strokes: Number($("strokes").value) } };
  if (shared.tab === "style") {
    if (!chosen()) throw new Error("there is no picture; choose one first");
    asked.picture = chosen();
    if ($("way").value === "style") return { kind: "style", request: asked };
    asked.strength = Number($("strength").value);
  } else Object.assign(asked, { preset: $("preset").value, size: $("size").value, count });
  return { kind: "paint", request: asked };
}

// What the models know that begins like the last word, and words that they do not know.
export async function words() {
  const text = $("prompt").value;
  const found = text.trim() ? await ask(`/api/words?text=${encodeURIComponent(text)}`).catch(() => null) : null;
  if ($("prompt").value !== text) return;  // typed on meanwhile
  const { suggestions = [], unheard = [] } = found || {};
  $("suggestions").replaceChildren(...suggestions.map((each) => make("button", { type: "button", onclick: () => {
    $("prompt").value = each;
    $("prompt").focus();
    words();
  } }, each)));
  $("unheard").textContent = unheard.length ? `The bundled models do not know: ${unheard.join(", ")}.` : "";
}

// kind, and what a request of that kind says, as far as it is known.
export function take(kind, asked) {
  if (asked.picture) $("way").value = kind;
  go(kind === "paint" && asked.picture ? "style" : kind);
  $("prompt").value = asked.prompt || "";
  $("texts").value = (asked.texts || []).join("\n");
  $("seed").value = asked.seed ?? "";
  $("steps").value = asked.steps ?? "";
  const offered = shared.state.models.map(({ key }) => key);
  const models = (asked.models || []).filter((model) => offered.includes(model));
  if (models.length) [$("model-a").value, $("model-b").value] = [models[0], models[1] || ""];
  for (const name of ["preset", "size", "method"]) if (asked[name] !== undefined) $(name).value = asked[name];
  for (const name of ["strength", "strokes"]) {
    if (asked[name] === undefined) continue;
    $(name).value = asked[name];
    $(`${name}-value`).textContent = asked[name];
  }
  if (asked.picture) choose(asked.picture, source(asked.picture));
  go(shared.tab);
  words();
  $(kind === "explain" ? "texts" : "prompt").focus();
}

function source(picture) {
  const at = picture.lastIndexOf("/");
  if (at < 0) return `/uploads/${picture}`;
  const [run, side] = [picture.slice(0, at), picture.slice(at + 1)];
  return side.includes(".") ? address(run, "", side) : address(run, side, "image.png");
}

// The program's choices into the fields.
export function offer() {
  const { models, pair, presets, sizes, methods } = shared.state;
  const listed = models.map(({ key }) => [key, key]);
  fill($("model-a"), listed, pair[0]);
  fill($("model-b"), [...listed, ["", "none"]], pair[1] || "");
  fill($("preset"), Object.keys(presets).map((name) => [name, name]), "fast");
  fill($("size"), sizes.map((size) => [size, size ? `${size} px` : "default"]), "");
  fill($("method"), methods.map((name) => [name, name]), "gradcam");
}

export function connectForm(onSubmit, onChange) {
  changed = onChange;
  for (const button of document.querySelectorAll("nav button")) button.addEventListener("click", () => go(button.dataset.go));
  $("chips").append(...EXAMPLES.map((text) => make("button", { type: "button", onclick: () => { $("prompt").value = text; words(); } }, text)));
  const send = (count) => {
    try { onSubmit(request(count)); } catch (error) { problem(error.message); }
  };
  $("form").addEventListener("submit", (event) => { event.preventDefault(); send(1); });
  $("four").addEventListener("click", () => send(4));
  $("prompt").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey) { event.preventDefault(); $("form").requestSubmit(); }
  });
  let typed = 0;
  $("prompt").addEventListener("input", () => { clearTimeout(typed); typed = setTimeout(words, 150); });
  $("dice").addEventListener("click", () => { $("seed").value = anySeed(); });
  for (const name of ["preset", "way"]) $(name).addEventListener("change", () => go(shared.tab));
  for (const name of ["strength", "strokes"]) $(name).addEventListener("input", () => { $(`${name}-value`).textContent = $(name).value; });
}
