// Pictures that come from the reader, and the maps that come back.

import { $, address, ask, make, noteOf, problem, shared } from "./dom.js";

let picture = "";  // id of an upload, or RUN/SIDE

export const chosen = () => picture;

export function choose(id, source) {
  picture = id;
  $("dropped").src = source;
  $("dropped").hidden = false;
  $("drop").querySelector("b").textContent = "Choose another";
}

async function send(file) {
  problem("");
  if (!file) return;
  if (file.size > shared.state.bytes) {
    problem(`the file is larger than ${shared.state.bytes / 2 ** 20} MiB; choose a smaller one`);
    return;
  }
  try {
    const found = await ask("/api/uploads", {
      method: "POST", headers: { "Content-Type": "application/octet-stream" }, body: file,
    });
    choose(found.id, `/uploads/${found.id}`);
  } catch (error) {
    problem(error.message);
  }
  $("file").value = "";
}

export function connectUploads() {
  $("file").addEventListener("change", () => send($("file").files[0]));
  const drop = $("drop");
  for (const name of ["dragover", "dragleave", "drop"]) {
    drop.addEventListener(name, (event) => {
      event.preventDefault();
      drop.classList.toggle("over", name === "dragover");
      if (name === "drop") send(event.dataTransfer.files[0]);
    });
  }
}

export function showMaps(run) {
  const rows = run.texts.map((text, number) => [
    make("h3", {}, text),
    row(run, [original(run), ...run.sides.map((side) => make("figure", {},
      make("img", { src: address(run.id, side.key, `map-${number + 1}.png`), alt: `where ${side.model} sees ${text}` }),
      make("figcaption", {}, make("b", {}, title(side.model)),
        make("span", {}, `cosine ${side.cosines[number].toFixed(3)}`))))]),
  ]).flat();
  rows.push(make("div", { class: "scale" }),
    make("div", { class: "ends" }, make("span", {}, "nothing here speaks for the words"), make("span", {}, "the strongest place")));
  $("maps").replaceChildren(...rows);
  $("pictures").hidden = $("scrub").hidden = true;
  $("maps").hidden = false;
  document.body.classList.add("shown");
}

const original = (run) => make("figure", { class: "original" },
  make("img", { src: address(run.id, "", "picture.png"), alt: "the picture" }), make("figcaption", {}, make("b", {}, "Picture")));

function row(run, figures) {
  const element = make("div", { class: "row" }, ...figures);
  element.style.setProperty("--sides", figures.length);
  return element;
}

function title(model) {
  const note = noteOf(model);
  return note.startsWith("vanilla") ? "Vanilla" : note.startsWith("clipag") ? "CLIPAG" : model;
}
