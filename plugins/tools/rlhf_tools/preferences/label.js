"use strict";
// The page of rlhf preferences label --serve. Texts of rows are set as text, never as HTML.
const SAID = {
  en: { name: "Your name", begin: "Begin", other: "Another name", one: "First is better", two: "Second is better", tie: "Tie",
    skip: "Skip", back: "Back", next: "On", fold: "Thoughts", done: "All done", first: "First answer", second: "Second answer",
    blind: "Which answer is better? Nothing tells where an answer comes from; the order is your own. Each label is saved at once.",
    thanks: n => `You labelled ${n} rows. Thank you.`, left: t => `about ${t} left`, start: "This is the first one.",
    agree: (s, n, a) => `On ${n} rows that several labelled, all say the same in ${s}; Krippendorff's alpha ${a}.`,
    user: "Question", assistant: "Answer before", system: "System", tool: "Tool", thought: n => `Thought, ${n} characters`,
    empty: "(empty)", gone: "The server does not answer. What you said before is saved.", minutes: "min", hours: "h" },
  zh: { name: "你的名字", begin: "开始", other: "换个名字", one: "第一个更好", two: "第二个更好", tie: "平局",
    skip: "跳过", back: "上一条", next: "继续", fold: "思考", done: "全部完成", first: "第一个回答", second: "第二个回答",
    blind: "哪个回答更好？页面不会透露回答的来源，顺序因人而异。每次判断都会立即保存。",
    thanks: n => `你标注了 ${n} 条，谢谢。`, left: t => `大约还要 ${t}`, start: "这已经是第一条。",
    agree: (s, n, a) => `多人标注的 ${n} 条中，${s} 意见完全一致；Krippendorff α ${a}。`,
    user: "问题", assistant: "之前的回答", system: "系统", tool: "工具", thought: n => `思考，${n} 字`,
    empty: "（空）", gone: "服务器没有响应。之前的判断已经保存。", minutes: "分钟", hours: "小时" },
};
const settings = JSON.parse(document.getElementById("settings").textContent);
const at = id => document.getElementById(id);
const AT_LEAST = 250;  // milliseconds a row is shown before a key says something of it
let lang = remembered("rlhf-lang") || settings.lang;
let name = remembered("rlhf-labeller"), task = null, progress = null, shown = 0, busy = false, finished = null;

function remembered(key, value) {
  try {
    if (value === undefined) return localStorage.getItem(key);
    localStorage.setItem(key, value);
  } catch { return null; }  // storage may be switched off
}
const say = key => SAID[lang][key];
function element(kind, className, text) {
  const made = document.createElement(kind);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}
async function ask(path, more = {}) {
  if (busy) return null;
  busy = true;
  buttons();
  try {
    const answer = await fetch(path, { method: "POST", body: JSON.stringify({ labeller: name, ...more }),
      headers: { "Content-Type": "application/json", [settings.header]: settings.token } });
    const found = await answer.json();
    if (!answer.ok) throw new Error(found.error);
    problem("");
    return found;
  } catch (error) {
    problem(error instanceof TypeError ? say("gone") : error.message);
    return null;
  } finally {
    busy = false;
    buttons();
  }
}
function problem(text) {
  at("problem").textContent = text;
  at("problem").hidden = !text;
}
function take(found) {
  if (!found) return;
  if (found.first) { problem(say("start")); return; }
  ({ task } = found);
  progress = found;
  finished = task ? null : found.people;
  shown = performance.now();
  draw();
  scrollTo(0, 0);
}
function duration(seconds) {
  return seconds < 5400 ? `${Math.max(1, Math.round(seconds / 60))} ${say("minutes")}` : `${(seconds / 3600).toFixed(1)} ${say("hours")}`;
}
function answerOf(parts, title, said) {
  const children = [element("h3", "", title)];
  for (const [thought, text] of parts) {
    const shownText = element("div", "text", text);
    shownText.dir = "auto";
    if (thought) {
      const folded = element("details");
      folded.append(element("summary", "", say("thought")(text.length.toLocaleString())), shownText);
      children.push(folded);
    } else children.push(shownText);
  }
  if (!parts.length) children.push(element("div", "soft", say("empty")));
  return children;
}
function draw() {
  document.documentElement.lang = lang;
  at("lang").textContent = lang === "zh" ? "English" : "中文";
  for (const one of document.querySelectorAll("[data-say]")) one.textContent = say(one.dataset.say);
  at("who").hidden = !!name;
  at("work").hidden = at("bar").hidden = !task;
  at("end").hidden = !finished;
  if (progress) {
    at("count").textContent = `${progress.done.toLocaleString()} / ${progress.total.toLocaleString()}`;
    at("left").textContent = progress.seconds ? say("left")(duration(progress.seconds)) : "";
    at("me").textContent = name;
    at("share").style.width = `${100 * progress.done / Math.max(1, progress.total)}%`;
  }
  if (finished) {
    at("thanks").textContent = say("thanks")(progress.done.toLocaleString());
    const { labelled_by_several: count, all_agree: all, krippendorff_alpha: alpha } = finished;
    at("agree").textContent = count ? say("agree")(`${Math.round(100 * all.share)}%`, count, alpha === null ? "–" : alpha.toFixed(2)) : "";
  }
  if (!task) return;
  at("turns").replaceChildren(...task.turns.map(([role, text], i) => {
    const turn = element("div", i === task.turns.length - 1 ? "turn last" : "turn");
    const body = element("div", "text", text);
    body.dir = "auto";
    turn.append(element("div", "soft", SAID[lang][role] || role), body);
    return turn;
  }));
  at("one").replaceChildren(...answerOf(task.answers[0], say("first")));
  at("two").replaceChildren(...answerOf(task.answers[1], say("second")));
  buttons();
}
const other = side => side === "a" ? "b" : "a";
const meaning = key => ({ 1: task.shown_first, 2: other(task.shown_first), t: "tie", s: "skip" })[key];
function buttons() {
  for (const one of document.querySelectorAll("#bar button")) {
    one.disabled = busy;
    one.classList.toggle("on", !!task && !!task.said && meaning(one.dataset.key) === task.said);
  }
  at("on").hidden = !task || !task.said;
}
async function act(key) {
  if (busy || (!task && key !== "b")) return;
  if (key === "f") {
    const all = [...document.querySelectorAll("#answers details")], open = all.some(one => !one.open);
    for (const one of all) one.open = open;
  } else if (key === "b") take(await ask("/back"));
  else if (key === "n") take(await ask("/next"));
  else if (meaning(key) && performance.now() - shown > AT_LEAST) {
    take(await ask("/label", { id: task.id, better: meaning(key), shown_first: task.shown_first }));
  }
}
at("bar").addEventListener("click", event => {
  const button = event.target.closest("button");
  if (button) { button.blur(); act(button.dataset.key); }
});
document.addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || event.target.tagName === "INPUT") return;
  const key = event.key.normalize("NFKC").toLowerCase();
  if (["1", "2", "t", "s", "b", "n", "f"].includes(key) && (task || finished)) { event.preventDefault(); act(key); }
});
at("who").addEventListener("submit", async event => {
  event.preventDefault();
  name = at("name").value.trim();
  if (!name) return;
  remembered("rlhf-labeller", name);
  draw();
  take(await ask("/next"));
});
for (const one of document.querySelectorAll(".other")) one.addEventListener("click", () => {
  name = task = progress = finished = null;
  draw();
  at("name").focus();
});
at("again").addEventListener("click", () => act("b"));
at("lang").addEventListener("click", () => {
  lang = lang === "zh" ? "en" : "zh";
  remembered("rlhf-lang", lang);
  draw();
});
draw();
if (name) ask("/next").then(take);
document.documentElement.dataset.ready = "1";
