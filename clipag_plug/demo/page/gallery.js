// The runs that are on disk: opened, liked, deleted and brought back.

import { $, address, ask, make, pictureOf, post, problem, shared } from "./dom.js";

const PAGE = 24;
let shown = PAGE;

export async function refresh() {
  shared.runs = await ask("/api/runs");
  draw();
}

let opener = () => {};
let closer = () => {};
export function connectGallery(open, close) {
  opener = open;
  closer = close;
  $("more").addEventListener("click", () => { shown += PAGE; draw(); });
  $("liked").addEventListener("change", draw);
}

function draw() {
  const runs = shared.runs.filter((run) => run.starred || !$("liked").checked);
  $("empty").hidden = runs.length > 0;
  $("empty").textContent = shared.runs.length ? "Nothing is liked yet." : "Nothing yet. The first picture takes some seconds.";
  $("everything").hidden = !shared.runs.length;
  $("more").hidden = runs.length <= shown;
  $("cards").replaceChildren(...runs.slice(0, shown).map(card));
}

function card(run) {
  const explained = run.kind === "explain";
  const thumbs = run.sides.map((side) => make("img", {
    src: explained ? address(run.id, side.key, "map-1.png") : pictureOf(run, side), alt: "", loading: "lazy",
  }));
  const day = new Date(run.created * 1000).toLocaleDateString(undefined, { day: "numeric", month: "short" });
  const kind = { explain: "explained", draw: "drawn", style: "restyled" }[run.kind];
  const facts = [kind, run.seed === undefined ? "" : `seed ${run.seed}`, run.state === "stopped" ? "stopped" : "", day];
  return make("li", {}, make("button", { type: "button", "data-run": run.id, title: run.title, onclick: () => opener(run) },
    make("div", { class: "thumbs" }, ...thumbs),
    make("b", {}, run.title), make("small", {}, facts.filter(Boolean).join(" · "))),
  make("div", { class: "tools" },
    make("button", { type: "button", class: "like", "aria-pressed": String(Boolean(run.starred)),
      "aria-label": `Like ${run.title}`, onclick: () => like(run) }, run.starred ? "★" : "☆"),
    make("button", { type: "button", "aria-label": `Delete ${run.title}`, onclick: () => remove(run) }, "✕")));
}

export async function like(run) {
  try {
    const { starred } = await post(`/api/runs/${encodeURIComponent(run.id)}/star`, { on: !run.starred });
    for (const each of [run, ...shared.runs]) if (each.id === run.id) each.starred = starred;
  } catch (error) {
    return problem(error.message);
  }
  draw();
}

export async function remove(run) {
  const name = encodeURIComponent(run.id);
  try {
    const { kept } = await post(`/api/runs/${name}/delete`);
    closer(run);
    tell(`“${run.title}” is deleted; it is kept in ${kept}.`, async () => {
      await post(`/api/runs/${name}/restore`).catch((error) => problem(error.message));
      tell("");
      await refresh();
    });
  } catch (error) {
    problem(error.message);
  }
  await refresh();
}

function tell(text, undo = null) {
  const [words, button] = $("notice").children;
  words.textContent = text;
  button.hidden = !undo;
  button.onclick = undo;
}
