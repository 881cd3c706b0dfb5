// The curves and the answers of a run's page. Text of models reaches the page by textContent alone.
"use strict";
(async () => {
  const byId = id => document.getElementById(id);
  const json = id => JSON.parse(byId(id).textContent);
  const inflate = async id => {
    const bytes = Uint8Array.from(atob(byId(id).textContent), c => c.charCodeAt(0));
    return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).json();
  };
  const el = (tag, attributes = {}, ...children) => {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else if (name in node && name !== "list") node[name] = value;
      else node.setAttribute(name, value);
    }
    node.append(...children.filter(child => child !== null && child !== undefined));
    return node;
  };
  const own = (object, name) => object && Object.hasOwn(object, name) ? object[name] : undefined;  // not what all objects have
  const options = (pairs, current) => pairs.map(([value, text]) => el("option", {value, selected: value === current}, text));
  const figure = value => value === null || value === undefined ? "–" : Math.abs(value) >= 1000 ? Math.round(value).toString()
    : value === 0 ? "0" : Math.abs(value) < 0.001 ? value.toExponential(1) : String(+value.toPrecision(3));
  const page = json("page"), t = page.words;
  const several = page.runs.length > 1;
  const curves = await inflate("curves");

  // Curves

  const view = {smooth: 0, log: false};
  const shade = index => getComputedStyle(document.documentElement).getPropertyValue(`--s${index % 8}`).trim();
  const colour = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  // An exponential mean without the pull of its beginning; what is missing stays missing.
  const smoothed = (values, weight) => {
    let mean = 0, sum = 0;
    return values.map(value => {
      if (value === null || value === undefined) return value;
      mean = weight * mean + (1 - weight) * value;
      sum = weight * sum + (1 - weight);
      return mean / sum;
    });
  };
  const positive = values => view.log ? values.map(value => value > 0 ? value : null) : values;
  const lines = chart => page.runs.flatMap((run, r) => chart.names.filter(name => own(curves[r].columns, name)).map((name, n) => ({
    label: several ? (chart.names.length > 1 ? `${run} · ${name}` : run) : name,
    colour: shade(several ? r : n), dash: several && n ? [6, 4] : name.startsWith("eval_") ? [4, 3] : undefined,
    steps: curves[r].steps, values: curves[r].columns[name],
  })));
  // A line that is flat, or a point alone, has room around it.
  const xRange = (u, low, high) => low === null ? [0, 1] : low === high ? [low - 1, high + 1] : [low, high];
  const yRange = (u, low, high) => {
    if (low === null) return [0, 1];
    if (low === high) return low === 0 ? [0, 1] : [low - Math.abs(low) / 10, high + Math.abs(high) / 10];
    return uPlot.rangeNum(low, high, 0.1, true);
  };
  const draw = (chart, box) => {
    const found = lines(chart), series = [{label: t.step}], tables = [];
    const sparse = values => values.filter(value => value !== null).length < 30;
    for (const line of found) {
      const values = positive(line.values);
      const column = [...values, ...Array(line.steps.length - values.length).fill(null)];
      if (view.smooth) {
        series.push({label: line.label, class: "raw", stroke: line.colour + "40", width: 1, spanGaps: true, points: {show: false}});
        tables.push([line.steps, column]);
      }
      series.push({label: line.label, stroke: line.colour, width: 1.75, dash: line.dash, spanGaps: true,
        points: {show: sparse(column), size: 5}, value: (u, value) => figure(value)});
      tables.push([line.steps, view.smooth ? smoothed(column, view.smooth) : column]);
    }
    const axis = {stroke: colour("--soft"), grid: {stroke: colour("--line"), width: 1}, ticks: {stroke: colour("--line")},
      font: "11px system-ui, sans-serif"};
    const leftOut = view.log && found.some(line => line.values.some(value => value !== null && value <= 0));
    box.replaceChildren(...(leftOut ? [el("p", {className: "soft"}, t.below_zero)] : []));
    return new uPlot({
      width: Math.max(200, box.clientWidth), height: 190, series,
      scales: {x: {time: false, range: xRange}, y: {distr: view.log ? 3 : 1, ...(view.log ? {} : {range: yRange})}},
      axes: [{...axis, size: 28}, {...axis, size: 52, values: (u, ticks) => ticks.map(tick => tick === null ? "" : figure(tick))}],
      cursor: {sync: {key: "steps"}, drag: {x: true, y: false}, points: {size: 6}},
    }, uPlot.join(tables.map(([x, y]) => [x, y])), box);
  };
  const boxes = new Map();
  const seen = new IntersectionObserver(entries => {
    for (const entry of entries) if (entry.isIntersecting) {
      seen.unobserve(entry.target);
      const one = boxes.get(entry.target);
      one.plot = draw(one.chart, entry.target);
    }
  }, {rootMargin: "300px"});
  const again = () => { for (const [box, one] of boxes) if (one.plot) { one.plot.destroy(); one.plot = draw(one.chart, box); } };
  for (const chart of page.charts) {
    if (!lines(chart).length) continue;
    const box = el("div", {className: "plot"});
    byId(chart.other ? "other-charts" : "charts").append(
      el("section", {className: "chart"}, el("h3", {}, chart.title, chart.says ? el("small", {}, chart.says) : null), box));
    if (chart.other) byId("others").hidden = false;
    boxes.set(box, {chart});
    seen.observe(box);
  }
  new ResizeObserver(() => { for (const [box, one] of boxes) if (one.plot && box.clientWidth)
    one.plot.setSize({width: Math.max(200, box.clientWidth), height: 190}); }).observe(byId("charts"));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", again);
  if (boxes.size) byId("curve-bar").append(
    el("label", {}, t.smoothing, el("input", {type: "range", id: "smoothing", min: 0, max: 0.98, step: 0.02, value: 0,
      oninput: event => { view.smooth = +event.target.value; again(); }})),
    el("label", {}, el("input", {type: "checkbox", id: "log", onchange: event => { view.log = event.target.checked; again(); }}), t.log),
    el("span", {className: "soft"}, t.zoom));
  else byId("charts").append(el("p", {}, t.nothing));

  // Answers

  const all = await inflate("answers");
  const shown = {run: 0, source: "", step: null, filter: "step", search: "", prompt: null, count: 8};
  const total = scores => {  // weighted
    const run = all[shown.run], names = shown.source === "held" ? run.held.names : run.names;
    const known = scores.map((score, i) => score === null ? null : score * (own(run.weights, names[i]) ?? 1)).filter(score => score !== null);
    return known.length ? known.reduce((a, b) => a + b) : null;
  };
  const measure = (group, kind) => {
    const answers = group[2];
    if (kind === "pairs") { const margin = answers[0][1][all[shown.run].names.indexOf("rewards/margins")] ?? answers[0][1][0] ?? 0;
      return {best: margin, worst: -margin, spread: Math.abs(margin), longest: Math.max(...answers.map(a => a[3] || a[0].length)), ties: margin === 0, errors: 0, cut: 0}; }
    const totals = answers.map(a => total(a[1])).filter(score => score !== null);
    const most = totals.length ? Math.max(...totals) : -Infinity, least = totals.length ? Math.min(...totals) : Infinity;
    return {best: most, worst: -least, spread: totals.length ? most - least : -1, ties: totals.length > 1 && most === least,
      longest: Math.max(...answers.map(a => a[3] || a[0].length)), errors: answers.filter(a => a[5]).length, cut: answers.filter(a => !a[4]).length};
  };
  // The answers to held-out prompts as groups, too: one answer each, at every evaluation.
  const heldOut = held => held.answers.flatMap(stage => stage.texts.map((text, i) => {
    const scores = stage.scores[i] || {};
    return [stage.step, i, [[text, held.names.map(name => own(scores, name) ?? null), null, stage.tokens[i] ?? null, true, null]]];
  }));
  for (const run of all) { run.held.names = [...new Set(run.held.answers.flatMap(stage => stage.scores.flatMap(Object.keys)))]; run.heldGroups = heldOut(run.held); }
  const source = () => {
    const run = all[shown.run];
    return shown.source === "held" ? {kind: "answers", groups: run.heldGroups, prompts: run.held.prompts, names: run.held.names}
      : {kind: run.kind, groups: run.groups, prompts: run.prompts, names: run.names};
  };
  const parts = text => {  // the thought and the answer that a model has marked, each set apart
    const found = [], pattern = /<(think|answer)>([\s\S]*?)(<\/\1>|$)/g;
    let end = 0;
    for (const match of text.matchAll(pattern)) {
      if (match.index > end) found.push(["", text.slice(end, match.index)]);
      found.push([match[1], match[2], match[3]]);
      end = match.index + match[0].length;
    }
    if (end < text.length) found.push(["", text.slice(end)]);
    return found.filter(([kind, part]) => kind || part.trim());
  };
  const written = text => {
    if (!text.trim()) return el("div", {className: "text soft"}, t.empty);
    return el("div", {className: "text"}, ...parts(text).map(([kind, part, closed]) => kind
      ? el("div", {className: kind === "think" ? "think" : "final"}, el("div", {className: "tag"}, `<${kind}>`), part.trim(),
        closed ? null : el("span", {className: "cut"}, ` ${t.open}`)) : part.trim()));
  };
  const answerBox = (answer, names, title) => {
    const [text, scores, advantage, tokens, finished, errors] = answer;
    const said = names.map((name, i) => scores[i] === null && own(errors, name) ? null : el("span", {}, `${name} `, el("b", {}, figure(scores[i]))));
    if (advantage !== null) said.push(el("span", {className: advantage > 0 ? "good" : advantage < 0 ? "bad" : ""}, `${t.advantage} `, el("b", {}, (advantage > 0 ? "+" : "") + figure(advantage))));
    if (tokens) said.push(el("span", {className: "soft"}, `${tokens} ${t.tokens}`));
    if (!finished) said.push(el("span", {className: "cut"}, t.cut));
    for (const [name, error] of Object.entries(errors || {})) said.push(el("span", {className: "cut"}, `${name}: ${error}`));
    const side = advantage === null ? "" : advantage > 0 ? " up" : advantage < 0 ? " down" : "";
    return el("div", {className: `answer${side}`}, title ? el("b", {}, title) : null, el("div", {className: "said"}, ...said.filter(Boolean)), written(text));
  };
  const promptBox = turns => el("div", {className: "prompt"}, ...turns.map(([role, text], i) =>
    el("div", {className: i === turns.length - 1 ? "text last" : "text"}, role ? el("div", {className: "role"}, role) : null, text)));
  const groupBox = (group, data) => {
    const [step, number, answers] = group;
    const same = data.groups.filter(other => other[1] === number).length;
    const head = el("header", {}, el("b", {}, `${t.step} ${step}`),
      same > 1 && shown.prompt === null ? el("button", {className: "link", onclick: () => { shown.prompt = number; list(); }}, `${t.over_time} (${same})`) : null);
    const boxes = data.kind === "pairs" ? [answerBox([answers[0][0], [], null, answers[0][3], true, null], [], t.chosen), answerBox([answers[1][0], [], null, answers[1][3], true, null], [], t.rejected)]
      : answers.map(answer => answerBox(answer, data.names, ""));
    if (data.kind === "pairs") head.append(el("span", {className: "said soft"}, data.names.map((name, i) => `${name} ${figure(answers[0][1][i])}`).join(" · ")));
    return el("article", {className: "group"}, head, promptBox(data.prompts[number] || []), el("div", {className: "answers"}, ...boxes));
  };
  // One prompt at several steps: the prompt once, then its answers in the order of steps.
  const overTime = (groups, data) => {
    const boxes = groups.flatMap(([step, , answers]) => answers.map(answer => answerBox(answer, data.names, `${t.step} ${step}`)));
    return el("article", {className: "group"}, promptBox(data.prompts[shown.prompt] || []), el("div", {className: "answers"}, ...boxes));
  };
  const steps = data => [...new Set(data.groups.map(group => group[0]))].sort((a, b) => a - b);
  const chosen = data => {
    let groups = data.groups;
    if (shown.prompt !== null) return groups.filter(group => group[1] === shown.prompt);
    if (shown.search) {
      const wanted = shown.search.toLowerCase();
      groups = groups.filter(group => group[2].some(answer => answer[0].toLowerCase().includes(wanted)) ||
        (data.prompts[group[1]] || []).some(turn => turn[1].toLowerCase().includes(wanted)));
    }
    if (shown.filter === "step") return shown.search ? groups : groups.filter(group => group[0] === shown.step);
    const measured = groups.map(group => [group, measure(group, data.kind)]);
    const only = {ties: m => m.ties, errors: m => m.errors > 0, cut: m => m.cut > 0}[shown.filter];
    if (only) return measured.filter(([, m]) => only(m)).map(([group]) => group);
    return measured.sort((a, b) => b[1][shown.filter] - a[1][shown.filter] || 0).map(([group]) => group);
  };
  const bar = el("div", {className: "bar"}), results = el("div", {id: "groups"});
  byId("browser").append(bar, results);
  // Show what is chosen; who works with the keyboard stays where he was, or comes to where he can go on.
  const list = () => {
    const last = document.activeElement, here = byId("browser").contains(last);
    fill();
    if (here && !last.isConnected) {
      const next = [last.id, {before: "after", after: "before"}[last.id], "back", "filter"].map(id => id && byId(id));
      next.find(node => node && !node.disabled)?.focus({preventScroll: true});
    }
  };
  const fill = () => {
    const data = source(), there = steps(data);
    if (shown.step === null || !there.includes(shown.step)) shown.step = there[there.length - 1] ?? null;
    const groups = chosen(data);
    const at = there.indexOf(shown.step);
    const go = to => { shown.step = there[Math.max(0, Math.min(there.length - 1, to))]; shown.filter = "step"; shown.prompt = null; shown.count = 8; list(); };
    const some = data.kind === "answers" && shown.source !== "held";  // of others nothing was cut or failed
    const filters = [["step", t.by_step], ["spread", t.spread], ["ties", t.ties], ["best", t.best], ["worst", t.worst], ["longest", t.longest], ...(some ? [["cut", t.cut_ones], ["errors", t.errors]] : [])];
    if (!filters.some(([name]) => name === shown.filter)) { shown.filter = "step"; fill(); return; }
    const run = all[shown.run], sources = [];
    if (run.groups.length) sources.push(["", t.training]);
    if (run.heldGroups.length) sources.push(["held", t.held_out]);
    const controls = [];
    if (several) controls.push(el("select", {id: "run", "aria-label": t.which, onchange: event => { shown.run = +event.target.value; reset(); }}, ...options(page.runs.map((name, i) => [String(i), name]), String(shown.run))));
    if (sources.length > 1) controls.push(el("select", {id: "source", "aria-label": t.which, onchange: event => { shown.source = event.target.value; shown.step = null; shown.prompt = null; list(); }}, ...options(sources, shown.source)));
    controls.push(el("select", {id: "filter", "aria-label": t.which, onchange: event => { shown.filter = event.target.value; shown.prompt = null; shown.count = 8; list(); }}, ...options(filters, shown.filter)));
    if (shown.filter === "step" && there.length > 1) controls.push(el("div", {className: "grow turn"},
      el("button", {id: "before", "aria-label": t.earlier, disabled: at === 0, onclick: () => go(at - 1)}, "‹"),
      el("input", {type: "range", id: "step", "aria-label": t.step, className: "grow", min: 0, max: there.length - 1, value: at, onchange: event => go(+event.target.value), oninput: event => { byId("at").textContent = `${t.step} ${there[+event.target.value]}`; }}),
      el("button", {id: "after", "aria-label": t.later, disabled: at === there.length - 1, onclick: () => go(at + 1)}, "›"), el("span", {id: "at"}, `${t.step} ${shown.step}`)));
    controls.push(el("input", {type: "search", id: "search", "aria-label": t.search, placeholder: t.search, value: shown.search, onchange: event => { shown.search = event.target.value; shown.count = 8; list(); }}));
    bar.replaceChildren(...controls);
    const notes = [];
    if (!data.groups.length) notes.push(el("p", {}, t.no_answers));
    else if (shown.source !== "held" && run.groups.length < run.total) notes.push(el("p", {className: "soft"}, t.some.replace("{kept}", run.groups.length).replace("{total}", run.total)));
    if (shown.prompt !== null) notes.push(el("p", {}, el("button", {id: "back", onclick: () => { shown.prompt = null; list(); }}, t.back)));
    if (data.groups.length && !groups.length) notes.push(el("p", {}, t.none));
    const more = groups.length > shown.count ? [el("button", {id: "more", onclick: () => { shown.count += 20; list(); }}, `${t.more} (${groups.length - shown.count})`)] : [];
    if (shown.prompt !== null && data.kind !== "pairs") { results.replaceChildren(...notes, overTime(groups, data)); return; }
    results.replaceChildren(...notes, ...groups.slice(0, shown.count).map(group => groupBox(group, data)), ...more);
  };
  const reset = () => { Object.assign(shown, {source: all[shown.run].groups.length ? "" : "held", step: null, prompt: null, count: 8, search: ""}); list(); };
  reset();
  document.documentElement.dataset.ready = "yes";
})();
