// The stage: two pictures that grow, and afterwards the trajectory of both under one slider.

import { $, address, make, pictureOf, titleOf } from "./dom.js";
import { enlarge } from "./view.js";

let sides = {};      // side -> {canvas, label, files, sheet}
let current = null;  // the run on the stage
let timer = 0;

export function prepare(models, aspect = 1) {
  stopPlaying();
  current = null;
  sides = {};
  $("pictures").replaceChildren();
  $("pictures").hidden = false;
  $("pictures").classList.toggle("one", models.length === 1);
  $("maps").hidden = $("scrub").hidden = $("actions").hidden = $("recipe").hidden = true;
  models.forEach((model, index) => {
    const key = "abcd"[index];
    const canvas = make("canvas", { width: 224, height: Math.round(224 / aspect), role: "img", "aria-label": `${model}` });
    canvas.style.setProperty("--aspect", aspect);
    const label = make("span");
    const files = make("span", { class: "files" });
    const acts = make("span", { class: "acts" });
    const name = make("b", { title: model }, titleOf(model));
    $("pictures").append(make("figure", { "data-side": key },
      canvas, make("figcaption", {}, name, label, files, acts)));
    sides[key] = { canvas, label, files, acts, model };
    label.textContent = model;
  });
}

export function preview({ side, step, picture }) {
  const place = sides[side];
  if (!place) return;
  const image = new Image();
  place.wanted = image;
  image.onload = () => {
    if (place.wanted !== image || current) return;
    paint(place, image, 0, 0, image.width, image.height);
    place.canvas.dataset.step = step;
    place.label.textContent = step ? `step ${step}` : "start";
  };
  image.src = picture;
}

function paint(place, image, x, y, width, height) {
  const { canvas } = place;
  if (canvas.width !== width || canvas.height !== height) {
    canvas.width = width;
    canvas.height = height;
    canvas.style.setProperty("--aspect", width / height);
  }
  canvas.getContext("2d").drawImage(image, x, y, width, height, 0, 0, width, height);
}

// acts: what may be done with one picture, {words: (run, side) => ...}.
export function showRun(run, acts) {
  prepare(run.sides.map((side) => side.model));
  current = run;
  document.body.classList.add("shown");
  let frames = 0;
  run.sides.forEach((side, index) => {
    const place = sides["abcd"[index]];
    place.size = side.size;
    place.columns = side.columns;
    place.image = new Image();
    place.image.onload = () => { if (current === run) atEnd(place); };
    place.image.src = pictureOf(run, side);
    place.canvas.onclick = () => enlarge(run, index);
    const name = run.sides.length > 1 && run.sides[1].seed !== run.sides[0].seed ? `seed ${side.seed}` : side.model;
    place.label.textContent = name + (side.judge ? ` · judge: ${side.judge}` : "");
    if (side.shown) place.files.append(make("span", {}, `${side.shown.replaceAll("x", "×")} px`));
    const every = { Enlarge: () => enlarge(run, index), ...acts };
    place.acts.append(...Object.entries(every).map(([words, act]) => make("button", { type: "button",
      "data-act": words.toLowerCase(), onclick: () => act(run, side) }, words)));
    const links = [["image.png", "PNG"], ["drawing.svg", "SVG"], ["progress.webp", "Animation"], ["recipe.json", "Recipe"], ["steps.csv", "Losses"]];
    for (const [name, text] of links) {
      if (!(side.files || []).includes(name)) continue;
      const end = name.slice(name.lastIndexOf("."));
      place.files.append(make("a", { href: address(run.id, side.key, name),
        download: `${run.id}-${side.model.replaceAll("/", "-")}${end}` }, text));
    }
    if (side.frames) {
      frames = Math.max(frames, side.frames);
      place.frames = side.frames;
      place.sheet = new Image();
      place.sheet.src = address(run.id, side.key, "frames.jpg");
    }
  });
  $("scrub").hidden = frames < 2;
  $("compare").hidden = run.sides.length < 2;
  $("frame").max = Math.max(frames - 1, 1);
  $("frame").value = $("frame").max;
  tell();
}

function atEnd(place) {
  paint(place, place.image, 0, 0, place.image.naturalWidth, place.image.naturalHeight);
  place.canvas.dataset.step = "end";
}

export function scrub() {
  const last = Number($("frame").max);
  const value = Number($("frame").value);
  for (const place of Object.values(sides)) {
    if (!place.sheet || !place.sheet.complete) continue;
    if (value === last && place.image.complete) { atEnd(place); continue; }
    const frame = Math.min(value, place.frames - 1);
    const width = place.sheet.naturalWidth / place.columns;
    const height = width * place.size[1] / place.size[0];
    paint(place, place.sheet, frame % place.columns * width, Math.floor(frame / place.columns) * height, width, Math.round(height));
    place.canvas.dataset.step = `frame ${frame}`;
  }
  tell();
}

function tell() {
  const share = Number($("frame").value) / Number($("frame").max);
  $("frame-value").textContent = share === 0 ? "start" : share === 1 ? "end" : `${Math.round(100 * share)} %`;
}

export function play() {
  if (timer) return stopPlaying();
  if ($("frame").value === $("frame").max) $("frame").value = 0;
  $("play").textContent = "❚❚";
  timer = setInterval(() => {
    $("frame").value = Number($("frame").value) + 1;
    scrub();
    if ($("frame").value === $("frame").max) stopPlaying();
  }, 90);
}

function stopPlaying() {
  clearInterval(timer);
  timer = 0;
  $("play").textContent = "▶";
}

export const runOnStage = () => current;
