// Brings the page to life: the form, the stream of events, the queue.

import { $, address, ask, make, post, problem, shared } from "./dom.js";
import { connectGallery, refresh } from "./gallery.js";
import { chosen, choose, connectUploads, showMaps } from "./look.js";
import { play, prepare, preview, runOnStage, scrub, showRun } from "./paint.js";

const EXAMPLES = ["a goldfish", "a lemon", "a school bus", "a jellyfish", "a king penguin", "a brown bear"];
const FIRST = {  // what the empty stage says
  paint: "Write some words and press Paint: both pictures grow here, side by side.",
  style: "Choose a picture, write a style as words, and press Restyle.",
  draw: "Write some words and press Draw: both drawings grow here, stroke by stroke.",
  explain: "Choose a picture and write what to look for: a map for every line and every model.",
};
const WORDS = { paint: "Paint", style: "Restyle", draw: "Draw", explain: "Explain" };
const seen = new Set();  // runs that the gallery has been asked for
const OVER = ["done", "stopped", "failed"];

function go(tab) {
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
  note();
}

function note() {
  const mine = shared.jobs.find((job) => job.id === shared.watched);
  const waits = Boolean(mine) && mine.state === "waiting";
  const ahead = waits ? shared.jobs.filter((job) => !OVER.includes(job.state)).indexOf(mine) : 0;
  const loading = shared.jobs.some((job) => job.state === "running" && job.kind === "warm-up");
  const empty = !document.body.matches(".busy, .shown");
  $("note").textContent = waits && loading && ahead === 1 ? "The models are loading, once after each start. This comes next."
    : waits ? `Waits in the queue, ${ahead} before it.` : empty ? FIRST[shared.tab] : "";
  $("note").hidden = !$("note").textContent;
  document.body.classList.toggle("waiting", waits);
}

function fill(select, values, chosenValue) {
  select.replaceChildren(...values.map(([value, text]) => make("option", { value }, text)));
  select.value = chosenValue;
}

function request() {
  const models = [$("model-a").value, $("model-b").value].filter(Boolean);
  if (shared.tab === "explain") {
    const texts = $("texts").value.split("\n").map((line) => line.trim()).filter(Boolean);
    return { kind: "explain", request: { models, picture: chosen(), texts, method: $("method").value } };
  }
  const asked = { models, prompt: $("prompt").value.trim(), seed: Number($("seed").value) };
  if ($("steps").value) asked.steps = Number($("steps").value);
  if (shared.tab === "draw") return { kind: "draw", request: { ...asked, strokes: Number($("strokes").value) } };
  if (shared.tab === "style") {
    if (!chosen()) throw new Error("there is no picture; choose one first");
    asked.picture = chosen();
    if ($("way").value === "style") return { kind: "style", request: asked };
    asked.strength = Number($("strength").value);
  } else Object.assign(asked, { preset: $("preset").value, size: $("size").value });
  return { kind: "paint", request: asked };
}

async function submit(content) {
  problem("");
  try {
    const job = await post("/api/jobs", content);
    watch(job);
    queue(shared.jobs);
    reveal($("stage"));
  } catch (error) {
    problem(error.message);
  }
}

// On a narrow screen what happens next may be out of sight.
function reveal(element) {
  const { top } = element.getBoundingClientRect();
  if (top < 0 || top > innerHeight / 2) element.scrollIntoView();
}

// What the bundled models know that begins like the last word, and words of which they know none.
async function words() {
  const text = $("prompt").value;
  const found = text.trim() ? await ask(`/api/words?text=${encodeURIComponent(text)}`).catch(() => null) : null;
  if ($("prompt").value !== text) return;  // typed on meanwhile
  const { suggestions = [], unheard = [] } = found || {};
  $("suggestions").replaceChildren(...suggestions.map((each) => make("button", { type: "button", onclick: () => {
    $("prompt").value = each;
    $("prompt").focus();
    words();
  } }, each)));
  $("unheard").textContent = unheard.length ? `The bundled models know none of: ${unheard.join(", ")}.` : "";
}

function watch(job) {
  shared.watched = job.id;
  shared.viewing = false;
  $("title").textContent = job.title;
  $("bar").firstElementChild.style.width = "0";
  prepare(job.models);
  document.body.classList.add("busy");
}

async function open(run) {
  shared.watched = null;
  shared.viewing = true;
  document.body.classList.remove("busy");
  $("title").textContent = run.title;
  $("bar").firstElementChild.style.width = "0";
  if (run.kind === "explain") {
    prepare(run.sides.map((side) => side.model));
    showMaps(run);
    $("actions").hidden = true;
  } else {
    showRun(run);
    $("actions").hidden = false;
    $("again").textContent = `${WORDS[run.kind]} it again`;
    await recipe(run);
  }
  queue(shared.jobs);
}

async function recipe(run) {
  const place = $("recipe");
  const side = run.sides.at(-1);
  if (!(side.files || []).includes("recipe.json")) return;
  const found = await ask(address(run.id, side.key, "recipe.json"));
  if (runOnStage() !== run) return;
  const replay = `clipag generate --from ${run.id}-${side.model}.png -o again.png`;
  place.querySelector("pre").textContent = (run.kind !== "paint" ? "" : `# the downloaded PNG repeats itself:\n# ${replay}\n\n`) + JSON.stringify(found, null, 2);
  place.hidden = false;
}

function use(run) {
  const asked = run.request || {};
  if (asked.picture) $("way").value = run.kind;
  go(run.kind === "draw" ? "draw" : asked.picture ? "style" : "paint");
  $("prompt").value = asked.prompt || run.title;
  $("seed").value = run.seed ?? 0;
  $("steps").value = asked.steps ?? "";
  if (asked.preset && !asked.picture) $("preset").value = asked.preset;
  if (asked.size !== undefined) $("size").value = asked.size;
  if (asked.picture) choose(asked.picture, asked.picture.includes("/") ? source(asked.picture) : `/uploads/${asked.picture}`);
  $("prompt").focus();
}

const source = (picture) => {
  const at = picture.lastIndexOf("/");
  return address(picture.slice(0, at), picture.slice(at + 1), "image.png");
};

async function queue(jobs) {
  shared.jobs = jobs;
  const running = jobs.find((job) => job.state === "running");
  const waiting = jobs.filter((job) => job.state === "waiting");
  const status = !running ? "ready" : running.kind === "warm-up" ? "loading the models" : `busy${waiting.length ? `, ${waiting.length} waiting` : ""}`;
  $("status").textContent = status;
  $("status").className = running && running.kind === "warm-up" ? "" : "ready";
  const mine = jobs.find((job) => job.id === shared.watched);
  if (!mine && !shared.viewing && running && running.kind !== "warm-up") {
    watch(running);  // after a reload
    return queue(jobs);
  }
  $("stop").hidden = !mine || OVER.includes(mine.state);
  $("stop").disabled = false;
  if (mine && mine.total) $("bar").firstElementChild.style.width = `${100 * mine.step / mine.total}%`;
  list(jobs, running, mine);
  note();
  if (mine && OVER.includes(mine.state)) await finish(mine);
  else if (jobs.some((job) => job.run && !seen.has(job.run))) await refresh();
  for (const job of jobs) if (job.run) seen.add(job.run);
}

function list(jobs, running, mine) {
  const rows = jobs.filter((job) => (job.state === "running" && job !== mine && job.kind !== "warm-up") || job.state === "waiting");
  if (rows.length === 1 && rows[0] === mine) rows.pop();  // the stage says it all
  $("queue").replaceChildren(...rows.map((job) => make("li", { "data-job": job.id },
    make("span", {}, `${job === running ? "Now" : job === mine ? "This one" : "Waits"}: ${job.title}`),
    job === running ? make("button", { type: "button", onclick: () => watch(job) }, "watch") : null,
    make("button", { type: "button", "aria-label": `Stop ${job.title}`, onclick: () => stop(job.id) }, "stop"))));
}

async function finish(job) {
  shared.watched = null;
  shared.viewing = true;
  document.body.classList.remove("busy");
  $("stop").hidden = true;
  if (job.message) problem(job.message);
  await refresh();
  const run = shared.runs.find((each) => each.id === job.run);
  if (run && shared.watched === null) await open(run);
  if (!job.run && !job.message && shared.watched === null) {  // taken out before its turn, and nothing sent since
    $("title").textContent = "What shall it be?";
    shared.viewing = false;  // and so the next message shows what runs
  }
}

async function stop(id) {
  $("stop").disabled = true;
  await post(`/api/jobs/${id}/stop`).catch((error) => problem(error.message));
}

// A server that was started anew knows nothing of the jobs of the old one.
function greet(id) {
  if (shared.server && shared.server !== id && shared.watched !== null) {
    Object.assign(shared, { watched: null, viewing: true });
    document.body.classList.remove("busy");
    $("stop").hidden = true;
    problem("the program was started anew while this was being made; press the button to make it again");
  }
  shared.server = id;
}

function onMessage(message) {
  if (message.kind === "start") greet(message.id);
  else if (message.kind === "queue") queue(message.jobs);
  else if (message.kind === "preview" && message.job === shared.watched) preview(message);
}

function listen() {
  const events = new EventSource("/api/events");
  let lost = false;
  events.onmessage = (event) => onMessage(JSON.parse(event.data));
  events.onopen = () => { if (lost) { lost = false; refresh(); } };
  events.onerror = () => {
    lost = true;
    $("status").textContent = "not connected";
    $("status").className = "lost";
  };
}

function connect() {
  for (const button of document.querySelectorAll("nav button")) button.addEventListener("click", () => go(button.dataset.go));
  $("chips").append(...EXAMPLES.map((text) => make("button", { type: "button", onclick: () => { $("prompt").value = text; words(); } }, text)));
  $("form").addEventListener("submit", (event) => {
    event.preventDefault();
    try { submit(request()); } catch (error) { problem(error.message); }
  });
  $("prompt").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey) { event.preventDefault(); $("form").requestSubmit(); }
  });
  let typed = 0;
  $("prompt").addEventListener("input", () => { clearTimeout(typed); typed = setTimeout(words, 150); });
  $("dice").addEventListener("click", () => { $("seed").value = Math.floor(Math.random() * 10000); });
  for (const name of ["preset", "way"]) $(name).addEventListener("change", () => go(shared.tab));
  for (const name of ["strength", "strokes"]) $(name).addEventListener("input", () => { $(`${name}-value`).textContent = $(name).value; });
  $("frame").addEventListener("input", scrub);
  $("play").addEventListener("click", play);
  $("stop").addEventListener("click", () => stop(shared.watched));
  $("again").addEventListener("click", () => submit({ again: runOnStage().id }));
  $("use").addEventListener("click", () => use(runOnStage()));
  $("look").addEventListener("click", () => {
    const run = runOnStage();
    const side = run.sides.at(-1);
    choose(`${run.id}/${side.key}`, address(run.id, side.key, "image.png"));
    $("texts").value = $("texts").value || run.title;
    go("explain");
    reveal($("form"));
  });
  connectUploads();
  connectGallery((run) => { open(run); reveal($("stage")); });
}

async function start() {
  connect();
  shared.state = await ask("/api/state");
  const { models, pair, presets, sizes, methods } = shared.state;
  const listed = models.map(({ key }) => [key, key]);
  fill($("model-a"), listed, pair[0]);
  fill($("model-b"), [...listed, ["", "none"]], pair[1] || "");
  fill($("preset"), Object.entries(presets).map(([name]) => [name, name]), "fast");
  fill($("size"), sizes.map((size) => [size, size ? `${size} px` : "default"]), "");
  fill($("method"), methods.map((name) => [name, name]), "gradcam");
  go("paint");
  prepare(pair);
  await refresh();
  listen();
}

start().catch((error) => problem(error.message));
