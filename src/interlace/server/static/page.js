// The page: settings, one or two groups, and the steps through them.
import { Group, forgetColours } from "./rows.js";

const $ = (id) => document.getElementById(id);
const FIELDS = { prompt: "p", width: "w", length: "n", temperature: "t", seed: "s" };
const JUDGE_EVERY = 250, PLAY_EVERY = 350; // milliseconds
let facts = null, groups = [], running = null, player = null, follows = true;

// Settings and the address ---------------------------------------------------------------------

function settings() {
  const mode = document.querySelector("input[name=mode]:checked").value;
  const numbers = Object.fromEntries(["width", "length", "temperature", "seed"].map((id) => [id, Number($(id).value)]));
  return { prompt: $("prompt").value, chat: $("chat").checked, mode, ...numbers };
}

function toAddress() {
  const query = new URLSearchParams();
  for (const [id, name] of Object.entries(FIELDS)) query.set(name, $(id).value);
  query.set("m", settings().mode);
  if ($("chat").checked) query.set("c", "1");
  history.replaceState(null, "", `?${query}`);
}

function fromAddress() {
  const query = new URLSearchParams(location.search);
  for (const [id, name] of Object.entries(FIELDS)) if (query.has(name)) $(id).value = query.get(name);
  for (const radio of document.querySelectorAll("input[name=mode]"))
    if (radio.value === query.get("m")) radio.checked = true;
  $("chat").checked = facts.chat && (query.get("c") === "1" || !query.has("p"));
  return query.has("p");
}

// The server -----------------------------------------------------------------------------------

function headers() {
  const made = { "Content-Type": "application/json" };
  if ($("key").value) made.Authorization = `Bearer ${$("key").value}`;
  return made;
}

async function ask(path, body, signal) {
  const method = body === undefined ? "GET" : "POST";
  const reply = await fetch(path, { method, headers: headers(), body: body && JSON.stringify(body), signal });
  if (!reply.ok) {
    const told = await reply.json().catch(() => null);
    const error = new Error(told?.error?.message ?? `The server answered ${reply.status}.`);
    error.status = reply.status;
    throw error;
  }
  return reply;
}

function bodyOf(asked, mode) {
  const body = {
    model: facts?.model, n: asked.width, max_tokens: asked.length, temperature: asked.temperature,
    seed: asked.seed, stream: true,
  };
  if (asked.chat) body.messages = [{ role: "user", content: asked.prompt }];
  else body.prompt = asked.prompt;
  if (mode === "alone") body.coupled = false;
  else if (facts?.couples) body.record_attention = "layers";
  return body;
}

async function* events(reply) {
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let left = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const parts = (left + value).split("\n\n");
    left = parts.pop();
    for (const part of parts) {
      if (!part.startsWith("data: ") || part === "data: [DONE]") continue;
      const event = JSON.parse(part.slice(6));
      if (event.error) throw new Error(event.error.message);
      yield event;
    }
  }
}

async function sample(group, asked, signal) {
  const path = asked.chat ? "v1/chat/completions" : "v1/completions";
  const reply = await ask(path, bodyOf(asked, group.mode), signal);
  let judged = 0;
  for await (const event of events(reply)) {
    for (const choice of event.choices) {
      if (asked.chat && choice.delta.role) continue;
      group.take(choice.index, choice.text ?? choice.delta.content ?? "", choice.finish_reason);
    }
    if (event.attention) group.attention = event.attention[0];
    if (performance.now() - judged > JUDGE_EVERY) {
      judged = performance.now();
      judge(group, asked, signal).catch(() => {}); // the last one counts
    }
    refresh();
  }
  await judge(group, asked, signal);
}

async function judge(group, asked, signal) {
  const steps = group.steps;
  const body = { prompt: asked.prompt, pieces: group.pieces };
  const found = await (await ask("playground/verdicts", body, signal)).json();
  if (steps >= (group.judged ?? 0)) {
    group.judged = steps;
    group.verdicts = found;
    refresh();
  }
}

async function run() {
  running?.abort();
  pause();
  const stopper = (running = new AbortController());
  const asked = settings();
  toAddress();
  const modes = asked.mode === "both" ? ["together", "alone"] : [asked.mode];
  groups = modes.map((mode) => new Group(mode, asked.width, facts.couples ? facts.reads : null));
  $("groups").replaceChildren(...groups.map((group) => group.section));
  forgetColours();
  follows = true;
  busy(true);
  tell("Sampling …");
  try {
    await Promise.all(groups.map((group) => sample(group, asked, stopper.signal)));
    const layers = groups.map((group) => group.attention?.[0]?.length ?? 0);
    $("layer").max = Math.max(...layers);
    forgetColours(); // of answers that were only passed by
    tell(summary());
  } catch (error) {
    if (running === stopper) tell(error.name === "AbortError" ? "Stopped." : error.message, error.name !== "AbortError");
    if (error.status === 401) $("key-label").hidden = false;
    stopper.abort(); // the other group, too
  }
  if (running === stopper) busy(false);
  refresh();
}

function summary() {
  return groups.map((group) => {
    const rows = group.verdicts?.rows ?? [];
    if (!rows.some((row) => row.correct !== null)) return `${group.mode}: ${group.width} rows`;
    const right = rows.filter((row) => row.correct);
    const taken = right.filter((row) => group.source(rows.indexOf(row), row.since) !== null);
    const over = group.mode === "together" ? `, ${taken.length} of them after a sibling had it` : "";
    return `${group.mode}: ${right.length} of ${group.width} rows are right${over}`;
  }).join(" · ");
}

// Steps ----------------------------------------------------------------------------------------

function refresh() {
  const steps = Math.max(0, ...groups.map((group) => group.steps));
  $("time").hidden = steps === 0;
  $("step").max = steps;
  if (follows) $("step").value = steps;
  const step = Number($("step").value), layer = Number($("layer").value);
  $("step-out").textContent = `${step} of ${steps}`;
  $("layer-out").textContent = layer === 0 ? "all" : layer;
  $("layer-label").hidden = !groups.some((group) => group.attention?.length);
  for (const group of groups) group.show(step, layer);
}

function go(step) {
  follows = false;
  $("step").value = step;
  refresh();
}

function pause() {
  clearInterval(player);
  player = null;
  $("play").textContent = "Play";
}

function play() {
  if (player !== null) return pause();
  if (Number($("step").value) >= Number($("step").max)) go(0);
  $("play").textContent = "Pause";
  player = setInterval(() => {
    go(Number($("step").value) + 1);
    if (Number($("step").value) >= Number($("step").max)) pause();
  }, PLAY_EVERY);
}

// The rest of the page -------------------------------------------------------------------------

function tell(text, isError = false) {
  $("status").textContent = text;
  $("status").classList.toggle("error", isError);
}

function busy(is) {
  $("stop").disabled = !is;
  $("save").disabled = is || groups.length === 0;
}

async function copy(text, what) {
  try {
    await navigator.clipboard.writeText(text);
    tell(`${what} is in the clipboard.`);
  } catch {
    tell(`The browser gave no access to the clipboard. ${text}`, true);
  }
}

function plainBody() {
  const asked = settings();
  const { stream, ...body } = bodyOf(asked, asked.mode === "alone" ? "alone" : "together");
  return [body, asked.chat ? "v1/chat/completions" : "v1/completions"];
}

function asCurl() {
  const [body, path] = plainBody();
  const quoted = JSON.stringify(body).replaceAll("'", "'\\''");
  const key = facts?.needs_key ? ` \\\n  -H "Authorization: Bearer $INTERLACE_API_KEY"` : "";
  return `curl ${new URL(path, location.href)} \\\n  -H 'Content-Type: application/json'${key} \\\n  -d '${quoted}'`;
}

function asPython() {
  const [{ coupled, record_attention, ...body }, path] = plainBody();
  const extra = coupled === false ? ", extra_body={\"coupled\": False}" : "";
  const call = path.includes("chat") ? "chat.completions" : "completions";
  const [head, key] = facts?.needs_key ? ["import os\n\n", `os.environ["INTERLACE_API_KEY"]`] : ["", `"none"`];
  const fields = Object.entries(body).map(([name, value]) => `    ${name}=${JSON.stringify(value)},`).join("\n");
  return `${head}from openai import OpenAI\n\nclient = OpenAI(base_url="${new URL("v1", location.href)}", api_key=${key})\n` +
    `reply = client.${call}.create(\n${fields}\n${extra ? `    ${extra.slice(2)},\n` : ""})\n` +
    `for choice in reply.choices:\n    print(choice.index, ${call === "completions" ? "choice.text" : "choice.message.content"})\n`;
}

function download() {
  const blob = new Blob([JSON.stringify({ settings: settings(), groups }, null, 1)], { type: "application/json" });
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = "interlace.json";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

async function begin() {
  try {
    facts = await (await ask("playground/model")).json();
  } catch (error) {
    $("key-label").hidden = error.status !== 401;
    tell(error.status === 401 ? "This server asks for its API key." : error.message, error.status !== 401);
    return;
  }
  const blocks = facts.coupling ? `${facts.coupling} blocks` : "nothing attached: rows cannot read each other";
  $("model").textContent = `${facts.model} · ${blocks}`;
  $("prompt").required = true; // not before: who only has a key to give could not send it
  $("width").max = facts.max_width;
  $("length").max = facts.max_tokens;
  $("chat-label").hidden = !facts.chat;
  $("examples-label").hidden = facts.examples.length === 0;
  $("example").replaceChildren(...facts.examples.map((text) => new Option(text, text)));
  const isLink = fromAddress();
  if (!isLink && facts.examples.length) $("prompt").value = facts.examples[0];
  $("example").value = $("prompt").value; // none, where it is no example
  tell("");
  if ($("prompt").value) await run();
  else $("prompt").focus();
}

$("settings").addEventListener("submit", (event) => { event.preventDefault(); facts ? run() : begin(); });
$("example").addEventListener("change", () => { $("prompt").value = $("example").value; run(); });
$("next").addEventListener("click", () => { $("seed").value = Number($("seed").value) + 1; if ($("settings").reportValidity()) run(); });
$("stop").addEventListener("click", () => running?.abort());
$("step").addEventListener("input", () => { pause(); follows = false; refresh(); });
$("layer").addEventListener("input", refresh);
$("back").addEventListener("click", () => { pause(); go(Math.max(0, Number($("step").value) - 1)); });
$("forward").addEventListener("click", () => { pause(); go(Number($("step").value) + 1); });
$("play").addEventListener("click", play);
$("save").addEventListener("click", download);
$("curl").addEventListener("click", () => copy(asCurl(), "The curl command"));
$("python").addEventListener("click", () => copy(asPython(), "The Python code"));
$("link").addEventListener("click", () => { toAddress(); copy(location.href, "The link"); });
begin();
