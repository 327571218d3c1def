// One picture as large as the window, or two of them under a slider.

import { $, make, pictureOf, titleOf } from "./dom.js";

let run = null;

export function enlarge(shown, index) {
  open(shown, [index]);
}

export function compare(shown) {
  open(shown, [0, 1]);
}

function open(shown, chosen) {
  run = shown;
  $("view-title").textContent = run.title;
  const both = chosen.length > 1;
  $("wiping").hidden = !both;
  if (both) {
    for (const [place, index] of [["view-left", 0], ["view-right", 1]]) {
      $(place).replaceChildren(...run.sides.map((side, number) => make("option", { value: number }, nameOf(side))));
      $(place).value = index;
    }
    $("wipe").value = 50;
  }
  lay(chosen);
  $("view").showModal();
}

function nameOf(side) {
  return titleOf(side.model) + (side.seed === undefined ? "" : `, seed ${side.seed}`);
}

function lay(chosen) {
  $("over").replaceChildren(...chosen.map((index) => make("img", {
    src: pictureOf(run, run.sides[index]), alt: `${run.title}: ${nameOf(run.sides[index])}`,
  })));
  wipe();
}

function wipe() {
  $("over").style.setProperty("--wipe", `${$("wipe").value}%`);
}

export function connectView() {
  $("view-close").addEventListener("click", () => $("view").close());
  $("view").addEventListener("click", (event) => { if (event.target === $("view")) $("view").close(); });
  $("wipe").addEventListener("input", wipe);
  for (const place of ["view-left", "view-right"]) {
    $(place).addEventListener("change", () => lay([Number($("view-left").value), Number($("view-right").value)]));
  }
}
