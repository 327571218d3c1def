// Small helpers: elements, requests to this machine, and what every part of the page shares.

export const $ = (id) => document.getElementById(id);

export const shared = { state: null, runs: [], watched: null, viewing: false, tab: "paint", jobs: [], server: "", connected: false };

// make("a", {href: "/"}, "text", child): text is always text, never markup.
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

export async function ask(address, options = {}) {
  let answer;
  try {
    answer = await fetch(address, options);
  } catch {
    throw new Error("the program behind this page does not answer; is `clipag demo` still running?");
  }
  const content = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(content.error || `the answer was ${answer.status}`);
  return content;
}

export const post = (address, content = {}) => ask(address, {
  method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(content),
});

export function problem(text) {
  $("problem").hidden = !text;
  $("problem").textContent = text ? text[0].toUpperCase() + text.slice(1) + "." : "";
}

export const address = (run, side, name) =>
  "/runs/" + [run, side, name].filter(Boolean).map(encodeURIComponent).join("/");

export const noteOf = (model) => {
  const found = shared.state && shared.state.models.find((each) => each.key === model);
  return found ? found.note : "";
};

export const pictureOf = (run, side) => address(run.id, side.key, side.image || "image.png");

// The id under which a picture of the gallery can be sent back to the program.
export const idOf = (run, side) => `${run.id}/${side.key || side.image || ""}`;

export function titleOf(model) {
  const note = noteOf(model);
  return note.startsWith("vanilla") ? "Vanilla" : note.startsWith("clipag") ? "CLIPAG" : model;
}

export function progress(share) {
  const percent = Math.round(100 * share);
  $("bar").firstElementChild.style.width = `${percent}%`;
  $("bar").setAttribute("aria-valuenow", percent);
}
