// Brings the page to life: what is on the stage, the queue, and what the program says of them.

import { $, address, ask, idOf, make, pictureOf, post, problem, progress, shared } from "./dom.js";
import { WORDS, anySeed, connectForm, go, offer, take } from "./form.js";
import { connectGallery, like, refresh, remove } from "./gallery.js";
import { listen } from "./live.js";
import { choose, connectUploads, showMaps } from "./look.js";
import { play, prepare, preview, runOnStage, scrub, showRun } from "./paint.js";
import { compare, connectView } from "./view.js";

const FIRST = {  // what the empty stage says
  paint: "Write some words and press Paint: both pictures grow here, side by side.",
  style: "Choose a picture, write a style as words, and press Restyle.",
  draw: "Write some words and press Draw: both drawings grow here, stroke by stroke.",
  explain: "Choose a picture and write what to look for: a map for every line and every model.",
};
const NOTHING = "What shall it be?";
const VARIED = 0.4;  // share of noise in the start of a variation
const seen = new Set();  // runs that the gallery has been asked for
const OVER = ["done", "stopped", "failed"];
let stage = null;  // the run that is shown, maps included

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
  const share = mine && mine.total && !waits ? `${Math.round(100 * mine.step / mine.total)} % · ` : waits ? "waits · " : "";
  document.title = mine && !OVER.includes(mine.state) ? `${share}${mine.title} · clipag` : "clipag";
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

function watch(job) {
  shared.watched = job.id;
  shared.viewing = false;
  stage = null;
  $("title").textContent = job.title;
  progress(0);
  prepare(job.models);
  document.body.classList.add("busy");
}

// Puts the job aside; `viewing`: what is shown stays until something is asked for.
function leave(viewing) {
  Object.assign(shared, { watched: null, viewing });
  document.body.classList.remove("busy");
  $("stop").hidden = true;
  note();
}

async function open(run) {
  leave(true);
  stage = run;
  $("title").textContent = run.title;
  progress(0);
  const explained = run.kind === "explain";
  if (explained) {
    prepare(run.sides.map((side) => side.model));
    showMaps(run);
  } else {
    const acts = run.kind === "paint" ? { Variations: vary, Restyle: restyle, Explain: look } : { Restyle: restyle, Explain: look };
    showRun(run, acts);
  }
  $("actions").hidden = false;
  $("compare").hidden = explained || run.sides.length < 2;
  $("draw").hidden = explained || run.kind === "draw";
  $("again").textContent = `${WORDS[run.kind] || "Paint"} it again`;
  $("like").setAttribute("aria-pressed", String(Boolean(run.starred)));
  $("zip").href = `/download?run=${encodeURIComponent(run.id)}`;
  if (!explained) await recipe(run).catch((error) => problem(error.message));
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

// What may be done with one picture of a run.
function vary(run, side) {
  const request = { models: [side.model], prompt: run.title, picture: idOf(run, side), strength: VARIED, count: 4, seed: anySeed() };
  submit({ kind: "paint", request });
}

function send(run, side, tab) {
  choose(idOf(run, side), pictureOf(run, side));
  go(tab);
  reveal($("form"));
}

function restyle(run, side) {
  $("prompt").value = "";
  send(run, side, "style");
  $("prompt").focus();
}

function look(run, side) {
  $("texts").value = run.title;
  send(run, side, "explain");
}

function use(run) {
  const asked = { prompt: run.title, seed: run.seed, models: run.sides.map((side) => side.model), ...run.request };
  if (run.texts) asked.texts = run.texts;
  take(run.kind, asked);
  reveal($("form"));
}

function dropped(found) {
  const { kind, model, ...asked } = found.settings || {};
  if (kind) take(kind, { ...asked, models: [model] });
  else if (shared.tab !== "explain") go("style");
  reveal($("form"));
}

async function queue(jobs) {
  shared.jobs = jobs;
  const running = jobs.find((job) => job.state === "running");
  const waiting = jobs.filter((job) => job.state === "waiting");
  const status = !running ? "ready" : running.kind === "warm-up" ? "loading the models" : `busy${waiting.length ? `, ${waiting.length} waiting` : ""}`;
  if (shared.connected) {
    $("status").textContent = status;
    $("status").className = running && running.kind === "warm-up" ? "" : "ready";
  }
  const mine = jobs.find((job) => job.id === shared.watched);
  if (!mine && shared.watched === null && !shared.viewing && running && running.kind !== "warm-up") {
    watch(running);  // after a reload
    return queue(jobs);
  }
  if (!mine && shared.watched !== null && jobs.some((job) => Number(job.id) > Number(shared.watched))) {
    leave(true);  // it ended while this page was cut off, and the program has forgotten which picture it was
    problem("what was being made is over; it is in the gallery if it went well");
    await refresh();
  }
  $("stop").hidden = !mine || OVER.includes(mine.state);
  $("stop").disabled = false;
  if (mine && mine.total) progress(mine.step / mine.total);
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
  leave(true);
  if (job.message) problem(job.message);
  await refresh();
  const run = shared.runs.find((each) => each.id === job.run);
  if (run && shared.watched === null) await open(run);
  if (!job.run && !job.message && shared.watched === null) {  // taken out before its turn, and nothing sent since
    $("title").textContent = NOTHING;
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
    leave(true);
    problem("the program was started anew while this was being made; press the button to make it again");
  }
  shared.server = id;
}

function onMessage(message) {
  if (message.kind === "start") greet(message.id);
  else if (message.kind === "queue") queue(message.jobs).catch((error) => problem(error.message));
  else if (message.kind === "preview" && message.job === shared.watched) preview(message);
}

function connect() {
  connectForm(submit, note);
  $("frame").addEventListener("input", scrub);
  $("play").addEventListener("click", play);
  $("stop").addEventListener("click", () => stop(shared.watched));
  $("again").addEventListener("click", () => submit({ again: stage.id }));
  $("use").addEventListener("click", () => use(stage));
  $("draw").addEventListener("click", () => { $("prompt").value = stage.title; go("draw"); reveal($("form")); });
  $("compare").addEventListener("click", () => compare(stage));
  $("like").addEventListener("click", async () => {
    await like(stage);
    $("like").setAttribute("aria-pressed", String(Boolean(stage.starred)));
  });
  $("delete").addEventListener("click", () => remove(stage));
  connectView();
  connectUploads(dropped);
  connectGallery((run) => { open(run); reveal($("stage")); }, (run) => {
    if (stage && stage.id === run.id) clear();
  });
}

function clear() {
  stage = null;
  prepare(shared.state.pair);
  $("title").textContent = NOTHING;
  document.body.classList.remove("shown");
  note();
}

async function start() {
  connect();
  shared.state = await ask("/api/state");
  offer();
  go("paint");
  prepare(shared.state.pair);
  await refresh();
  listen(onMessage, () => refresh().catch((error) => problem(error.message)));
}

start().catch((error) => problem(error.message));
