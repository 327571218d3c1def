// The runs that are on disk.

import { $, address, ask, make, shared } from "./dom.js";

const PAGE = 24;
let shown = PAGE;

export async function refresh() {
  shared.runs = await ask("/api/runs");
  draw();
}

let opener = () => {};
export function connectGallery(open) {
  opener = open;
  $("more").addEventListener("click", () => { shown += PAGE; draw(); });
}

function draw() {
  $("empty").hidden = shared.runs.length > 0;
  $("more").hidden = shared.runs.length <= shown;
  $("cards").replaceChildren(...shared.runs.slice(0, shown).map(card));
}

function card(run) {
  const explained = run.kind === "explain";
  const thumbs = run.sides.map((side) => make("img", {
    src: address(run.id, side.key, explained ? "map-1.png" : "image.png"), alt: "", loading: "lazy",
  }));
  const day = new Date(run.created * 1000).toLocaleDateString(undefined, { day: "numeric", month: "short" });
  const kind = { explain: "explained", draw: "drawn", style: "restyled" }[run.kind];
  const facts = [kind, run.seed === undefined ? "" : `seed ${run.seed}`, run.state === "stopped" ? "stopped" : "", day];
  return make("li", {}, make("button", { type: "button", "data-run": run.id, title: run.title, onclick: () => opener(run) },
    make("div", { class: "thumbs" }, ...thumbs),
    make("b", {}, run.title), make("small", {}, facts.filter(Boolean).join(" · "))));
}
