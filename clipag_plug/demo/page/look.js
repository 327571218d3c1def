// Pictures that come from the reader, and the maps that come back.

import { $, address, ask, make, problem, shared, titleOf } from "./dom.js";

let picture = "";  // id of an upload, or RUN/SIDE

export const chosen = () => picture;

export function choose(id, source) {
  picture = id;
  $("dropped").src = source;
  $("dropped").hidden = false;
  $("drop").querySelector("b").textContent = "Choose another";
}

async function send(file, take) {
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
    take(found);
  } catch (error) {
    problem(error.message);
  }
  $("file").value = "";
}

// A picture may be dropped anywhere. `dropped` is told of it, with the settings that it carries if it is one of ours.
export function connectUploads(dropped) {
  $("file").addEventListener("change", () => send($("file").files[0], () => {}));
  for (const name of ["dragover", "dragleave", "drop"]) {
    document.addEventListener(name, (event) => {
      event.preventDefault();
      document.body.classList.toggle("over", name === "dragover");
      const here = $("drop").contains(event.target);
      if (name === "drop") send(event.dataTransfer.files[0], here ? () => {} : dropped);
    });
  }
}

export function showMaps(run) {
  const rows = run.texts.map((text, number) => [
    make("h3", {}, text),
    row(run, [original(run), ...run.sides.map((side) => make("figure", {},
      make("img", { src: address(run.id, side.key, `map-${number + 1}.png`), alt: `where ${side.model} sees ${text}` }),
      make("figcaption", {}, make("b", {}, titleOf(side.model)),
        make("span", {}, `cosine ${side.cosines[number] === null ? "is no number" : side.cosines[number].toFixed(3)}`))))]),
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
