"use strict";
// The page of an explained answer: what is pointed at or kept decides how the tokens are coloured.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const bytes = Uint8Array.from(atob(data.values), (letter) => letter.charCodeAt(0));
  const values = new Float32Array(bytes.buffer);
  const rows = data.answer.length, across = data.columns.length;
  const body = document.body, $ = (id) => document.getElementById(id);
  const spots = [...document.querySelectorAll(".t, .c")].map((element) => ({
    element,
    column: "c" in element.dataset ? Number(element.dataset.c) : -1,
    answer: "a" in element.dataset ? Number(element.dataset.a) : -1,
  }));
  const special = new Set(data.special);
  const state = { kept: null, pointed: null, words: false, marks: false };
  const at = (row, column) => values[row * across + column];
  const totals = Array.from({ length: rows }, (_, row) => {
    let sum = 0;
    for (let column = 0; column < across; column++) sum += Math.abs(at(row, column));
    return sum || 1;
  });

  // -- what belongs together: a token alone, or all tokens of its word
  const members = (words) => {
    const found = new Map();
    words.forEach((word, place) => found.set(word, [...(found.get(word) || []), place]));
    return words.map((word) => found.get(word));
  };
  const answerWords = members(data.answerWords), columnWords = members(data.columnWords);
  const answersOf = (place) => (state.words ? answerWords[place] : [place]);
  const columnsOf = (place) => data.groups[place] || (state.words ? columnWords[place] : [place]);
  const pictureAt = (place) => data.parts[data.groups[place][0]].replace(/^.*, /, "");
  const nameOf = (place) => (data.groups[place] ? pictureAt(place) : `'${textOf(data.columns, columnsOf(place))}'`);
  const textOf = (texts, places) => places.map((place) => texts[place]).join("");

  // -- numbers: parts of the relevance of what is looked at
  const rowOf = (answers) => {
    let whole = 0;
    for (const row of answers) whole += totals[row];
    const single = new Float64Array(across);
    for (const row of answers) for (let column = 0; column < across; column++) single[column] += at(row, column) / whole;
    if (!state.words) return single;
    return single.map((_, column) => columnWords[column].reduce((sum, one) => sum + single[one], 0));
  };
  const overall = () => {
    const shares = new Float64Array(across);
    for (let row = 0; row < rows; row++) for (let column = 0; column < across; column++) shares[column] += at(row, column) / totals[row] / rows;
    return state.words ? shares.map((_, column) => columnWords[column].reduce((sum, one) => sum + shares[one], 0)) : shares;
  };
  const servedBy = (columns) => data.answer.map((_, place) => {
    let sum = 0, whole = 0;
    for (const row of answersOf(place)) {
      whole += totals[row];
      for (const column of columns) sum += at(row, column);
    }
    return sum / whole;
  });
  const largest = (shares, counts) => shares.reduce((most, share, place) => (counts(place) ? Math.max(most, Math.abs(share)) : most), 0) || 1;
  const percent = (share) => `${(share * 100).toFixed(share < 0.0995 ? 1 : 0)} %`;

  // -- colours
  const colour = (element, strength) => {
    element.style.setProperty("--v", Math.min(Math.abs(strength), 1).toFixed(3));
    element.classList.toggle("neg", strength < 0);
    element.classList.toggle("hot", Math.abs(strength) >= 0.7);
  };
  const counted = (column) => !(state.marks && special.has(column));
  const paintColumns = (shares) => {
    const most = largest(shares, (column) => counted(column) && !onTrack.has(column));
    const mostOnTrack = largest(shares, (column) => onTrack.has(column));
    for (const { element, column, answer } of spots) {
      if (column < 0) colour(element, 0);
      else colour(element, counted(column) ? shares[column] / (onTrack.has(column) ? mostOnTrack : most) : 0);
      element.title = column < 0 ? "" : `${percent(shares[column])}`;
      if (answer >= 0 && !state.pointed && !state.kept) colour(element, 0);
    }
    document.querySelectorAll(".gap").forEach((gap) => {
      const inside = gap.dataset.columns.split(",").map(Number), sizes = inside.map((column) => Math.abs(shares[column]));
      const one = state.words ? new Map(inside.map((column, place) => [data.columnWords[column], sizes[place]])) : new Map(sizes.entries());
      const sum = [...one.values()].reduce((whole, share) => whole + share, 0);
      colour(gap, Math.max(...sizes) / most);
      gap.textContent = `⋯ ${inside.length} tokens${sum >= 0.005 ? `, ${percent(sum)}` : ""} ⋯`;
    });
    paintBehind(shares, mostOnTrack);
  };
  // -- a sound or series under the prompt: the shortest stretch that has half of what a token rests on there
  const timed = data.times.map((ends, column) => [ends, column]).filter(([ends]) => ends);
  const onTrack = new Set(timed.map(([, column]) => column));
  const stretchOf = (shares) => {
    const sums = [0];
    for (const [, column] of timed) sums.push(sums[sums.length - 1] + Math.abs(shares[column]));
    const half = sums[timed.length] / 2;
    if (!half) return null;
    let best = null;
    for (let first = 0, last = 0; first < timed.length; first++) {
      while (last < timed.length && sums[last] - sums[first] < half - 1e-12) last++;
      if (sums[last] - sums[first] < half - 1e-12) break;
      const ends = [timed[first][0][0], timed[last - 1][0][1]];
      if (!best || ends[1] - ends[0] < best[1] - best[0] - 1e-9) best = ends;
    }
    return best;
  };
  const inWords = (ends) => `${ends[0].toFixed(2)}-${ends[1].toFixed(2)} ${data.axis}`;
  const layWords = () => {
    const lane = document.querySelector("#track .said");
    if (!lane) return;
    lane.replaceChildren();
    const cells = [...document.querySelectorAll("#track .over-cells .t")];
    const begin = data.times[Number(cells[0].dataset.c)][0], end = data.times[Number(cells[cells.length - 1].dataset.c)][1];
    const levels = [], seen = new Set();
    data.answer.forEach((_, place) => {
      if (seen.has(answersOf(place)[0])) return;
      answersOf(place).forEach((one) => seen.add(one));
      const ends = stretchOf(rowOf(answersOf(place)));
      if (!ends || ends[0] >= end || !textOf(data.answer, answersOf(place)).match(/[\p{L}\p{N}]/u) || data.answerSpecial.includes(place)) return;
      const left = ((ends[0] - begin) / (end - begin)) * 100, right = ((Math.min(ends[1], end) - begin) / (end - begin)) * 100;
      const width = Math.max(right - left, 5);
      let level = levels.findIndex((taken) => taken <= left);
      if (level < 0) level = levels.length;
      levels[level] = left + width;
      const word = document.createElement("span");
      word.className = "t";
      word.dataset.a = place;
      word.tabIndex = -1;
      word.textContent = textOf(data.answer, answersOf(place));
      word.title = inWords(ends);
      word.style.cssText = `left:${Math.min(left, 95)}%;width:${width}%;top:${level * 25}px`;
      lane.append(word);
    });
    lane.style.height = `${levels.length * 25}px`;
  };
  const showWords = (answers) => {
    document.querySelectorAll("#track .said .t").forEach((word) => word.classList.toggle("on", answers.includes(Number(word.dataset.a))));
  };
  let playing = null;
  const offer = (ends) => {
    const button = $("play");
    if (!button) return;
    button.hidden = !ends;
    if (!ends) return;
    button.textContent = `▶ ${inWords(ends)}`;
    button.onclick = () => {
      const sound = $("sound");
      sound.currentTime = ends[0];
      sound.play();
      clearInterval(playing);
      playing = setInterval(() => { if (sound.currentTime >= ends[1] || sound.paused) { sound.pause(); clearInterval(playing); } }, 20);
    };
  };
  const paintBehind = (shares, most) => {
    const behind = document.querySelector(".behind");
    if (!behind) return;
    const columns = behind.dataset.columns.split(",").map(Number), sum = columns.reduce((whole, column) => whole + Math.abs(shares[column]), 0);
    colour(behind, Math.max(...columns.map((column) => Math.abs(shares[column]))) / most);
    behind.textContent = `${columns.length} tokens behind the end, on padding: ${percent(sum)}`;
  };
  const paintAnswers = (shares, columns) => {
    const most = largest(shares, () => true), chosen = new Set(columns);
    for (const { element, column, answer } of spots) {
      colour(element, answer < 0 ? 0 : shares[answer] / most);
      element.title = answer < 0 ? "" : percent(shares[answer]);
      if (chosen.has(column)) element.classList.add("on");
    }
  };

  // -- words
  const sorted = (shares, words) => {
    const seen = new Set(), found = [];
    const order = Array.from(shares, (_, place) => place).sort((a, b) => Math.abs(shares[b]) - Math.abs(shares[a]));
    for (const place of order) {
      const key = state.words ? words[place] : place;
      if (!seen.has(key) && shares[place]) found.push(place);
      seen.add(key);
    }
    return found;
  };
  const evenly = (shares, words) => {
    const kept = sorted(shares, words).map((place) => Math.abs(shares[place]));
    const whole = kept.reduce((sum, one) => sum + one, 0) || 1;
    return Math.exp(-kept.reduce((sum, one) => sum + (one / whole) * Math.log(one / whole), 0));
  };
  const say = (question, intro, parts, end) => {
    const box = $("say");
    box.querySelector(".q").textContent = question;
    const rests = box.querySelector(".rests");
    rests.textContent = intro;
    parts.forEach(([text, share], place) => {
      const strong = document.createElement("b");
      strong.textContent = text;
      rests.append(place ? ", " : " ", strong, ` ${percent(share)}`);
    });
    rests.append(end);
    weigh(null);
  };
  // -- which part of what was read it rests on: text, pictures, the answer so far
  const HUES = ["#f07a14", "#2f6fde", "#2a9d62", "#b43c9a", "#8a939d", "#c9a100"];
  const partNames = [...new Set(data.parts)];
  const weigh = (answers) => {
    const bars = $("say").querySelector(".bars"), line = $("say").querySelector(".parts");
    bars.replaceChildren();
    line.replaceChildren();
    if (!answers || partNames.length < 2) return;
    const sums = partNames.map(() => 0);
    let whole = 0;
    for (const row of answers) for (let column = 0; column < across; column++) {
      sums[partNames.indexOf(data.parts[column])] += Math.abs(at(row, column));
      whole += Math.abs(at(row, column));
    }
    partNames.forEach((name, place) => {
      const share = sums[place] / (whole || 1), bar = document.createElement("i"), dot = document.createElement("i");
      bar.style.width = `${share * 100}%`;
      bar.style.background = dot.style.background = HUES[place % HUES.length];
      bars.append(bar);
      line.append(dot, `${name} ${percent(share)}`);
    });
  };
  const tell = (shares, intro, question) => {
    const parts = sorted(shares, data.columnWords).slice(0, 6).map((place) => [textOf(data.columns, columnsOf(place)), shares[place]]);
    const many = evenly(shares, data.columnWords);
    const what = state.words ? "words" : "tokens";
    say(question, intro, parts, parts.length ? `; as sharp as if ${many.toFixed(many < 10 ? 1 : 0)} ${what} shared it evenly` : "");
  };

  const show = () => {
    const now = state.pointed || state.kept;
    for (const { element } of spots) element.classList.remove("on", "off");
    body.classList.toggle("words", state.words);
    if (!now) {
      const shares = overall();
      paintColumns(shares);
      tell(shares, "rests most on", "The whole answer");
      offer(null);
      showWords([]);
      weigh(data.answer.map((_, place) => place));
    } else if (now.kind === "answer") {
      const answers = answersOf(now.place), shares = rowOf(answers);
      paintColumns(shares);
      const read = new Set(answers.flatMap((row) => data.read[row]));
      for (const { element, column, answer } of spots) {
        if (answers.includes(answer)) element.classList.add("on");
        else if (read.has(column) && !shares[column]) element.classList.add("off");
      }
      const question = answers.length === 1 ? data.questions[answers[0]] : `'${textOf(data.answer, answers)}', ${answers.length} tokens together`;
      const ends = timed.length ? stretchOf(shares) : null;
      tell(shares, ends ? `lies at ${inWords(ends)}; rests most on` : "rests most on", question);
      offer(ends);
      showWords(answers);
      weigh(answers);
    } else {
      const columns = columnsOf(now.place), shares = servedBy(columns);
      paintAnswers(shares, columns);
      const parts = sorted(shares, data.answerWords).slice(0, 6).map((place) => [textOf(data.answer, answersOf(place)), shares[place]]);
      say(`${nameOf(now.place)} of the prompt`, "served most", parts, parts.length ? " of what they rest on" : " nothing");
    }
  };

  // -- pointing, keeping, moving
  const meant = (element) => {
    const spot = element && element.closest ? element.closest(".t") : null;
    if (!spot) return null;
    if ("a" in spot.dataset) return { kind: "answer", place: Number(spot.dataset.a) };
    return { kind: "column", place: Number(spot.dataset.c) };
  };
  const same = (a, b) => a && b && a.kind === b.kind && a.place === b.place;
  const keep = (one) => {
    state.kept = same(state.kept, one) ? null : one;
    state.pointed = null;
    show();
  };
  const view = $("text-view");
  view.addEventListener("pointerover", (event) => {
    const one = meant(event.target);
    if (same(one, state.pointed) || (!one && !state.pointed) || state.kept) return;
    state.pointed = one;
    show();
  });
  view.addEventListener("pointerleave", () => { state.pointed = null; show(); });
  view.addEventListener("click", (event) => {
    const one = meant(event.target);
    if (one) keep(one);
  });
  view.addEventListener("focusin", (event) => {
    const one = meant(event.target);
    if (one && event.target.matches(":focus-visible") && !state.kept) { state.pointed = one; show(); }
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") { state.kept = state.pointed = null; show(); return; }
    const element = document.activeElement, one = meant(element);
    if (!one) return;
    if (event.key === "Enter" || event.key === " ") { event.preventDefault(); keep(one); return; }
    const block = element.closest(".block, .cells, .cells-of-track, .said");
    const all = [...block.querySelectorAll(".t")].filter((other) => other.offsetParent !== null);
    const here = all.indexOf(element);
    const to = { ArrowRight: here + 1, ArrowDown: here + 1, ArrowLeft: here - 1, ArrowUp: here - 1, Home: 0, End: all.length - 1 }[event.key];
    if (to === undefined || !all[to]) return;
    event.preventDefault();
    element.tabIndex = -1;
    all[to].tabIndex = 0;
    if (state.kept) state.kept = meant(all[to]);
    all[to].focus();
    if (state.kept) show();
  });
  document.querySelectorAll(".block, .cells, .cells-of-track").forEach((block) => {
    block.querySelectorAll(".t").forEach((element, place) => { element.tabIndex = place ? -1 : 0; });
  });

  // -- folding: what the whole answer hardly rests on, far from what it rests on
  const AROUND = 5, SHORTEST = 14, KEPT = 40;
  const folds = () => {
    const shares = overall();
    for (const block of document.querySelectorAll(".prompt")) {
      const kids = [...block.querySelectorAll(".k")];
      const columns = kids.map((kid) => Number(kid.querySelector(".t").dataset.c));
      const strong = [...columns].sort((a, b) => Math.abs(shares[b]) - Math.abs(shares[a])).slice(0, KEPT);
      const open = new Set();
      columns.forEach((column, place) => {
        const begins = kids[place].previousElementSibling === null || kids[place].previousElementSibling.matches(".turn");
        if (!begins && !strong.includes(column)) return;
        for (let near = place - AROUND; near <= place + AROUND; near++) open.add(near);
      });
      let start = null;
      for (let place = 0; place <= kids.length; place++) {
        const closed = place < kids.length && !open.has(place) && !(kids[place].previousElementSibling || kids[place]).matches(".turn");
        if (closed && start === null) start = place;
        if (!closed && start !== null) { if (place - start >= SHORTEST) gap(kids.slice(start, place), columns.slice(start, place)); start = null; }
      }
    }
  };
  const gap = (kids, columns) => {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "gap";
    button.textContent = `⋯ ${kids.length} tokens ⋯`;
    button.dataset.columns = columns.join(",");
    button.addEventListener("click", () => { kids.forEach((kid) => kid.classList.remove("folded")); button.remove(); });
    kids[0].before(button);
    kids.forEach((kid) => kid.classList.add("folded"));
  };
  const fold = (wanted) => {
    document.querySelectorAll(".gap").forEach((button) => button.remove());
    document.querySelectorAll(".folded").forEach((kid) => kid.classList.remove("folded"));
    if (wanted) folds();
    show();
  };

  // -- the matrix
  const canvas = $("canvas"), LEFT = 120;
  let grid = null;
  // a picture is one column, where it stands in the text: its own tokens and those that keep its place
  const inPicture = new Set(Object.keys(data.groups).flatMap((place) => [...data.groups[place], ...data.runs[place].slice(1)]));
  const cellOf = (shares, place) => (data.groups[place] ? [...data.groups[place], ...data.runs[place]].reduce((sum, one) => sum + shares[one], 0) : shares[place]);
  const drawn = (place) => counted(place) || place in data.groups;
  const strongestOf = (shares, along) => along.filter(drawn).reduce((most, place) => Math.max(most, Math.abs(cellOf(shares, place))), 1e-30);
  const labelOf = (place) => (data.groups[place] ? pictureAt(place) : textOf(data.columns, columnsOf(place)));
  const layout = () => {
    const firsts = (words) => words.map((word, place) => [word, place]).filter(([word, place]) => !state.words || words.indexOf(word) === place).map(([, place]) => place);
    const apart = (place) => !inPicture.has(place);
    const down = firsts(data.answerWords), along = firsts(data.columnWords).filter(apart);
    const width = Math.max(3, Math.min(20, Math.floor(1080 / along.length))), height = Math.max(9, Math.min(20, Math.floor(900 / down.length)));
    return { down, along, width, height, top: width >= 11 ? 92 : 10 };
  };
  const draw = () => {
    grid = layout();
    const { down, along, width, height, top } = grid, scale = Math.min(window.devicePixelRatio || 1, 2);
    const styles = getComputedStyle(document.documentElement);
    const [warm, cool, ink] = ["--warm", "--cool", "--soft"].map((name) => styles.getPropertyValue(name).trim());
    const size = [LEFT + along.length * width + 8, top + down.length * height + 8];
    canvas.width = size[0] * scale; canvas.height = size[1] * scale;
    canvas.style.width = `${size[0]}px`; canvas.style.height = `${size[1]}px`;
    const pen = canvas.getContext("2d");
    pen.scale(scale, scale);
    pen.font = "11px system-ui, sans-serif";
    pen.textBaseline = "middle";
    down.forEach((place, y) => {
      const shares = rowOf(answersOf(place)), most = strongestOf(shares, along);
      along.forEach((column, x) => {
        const share = cellOf(shares, column);
        if (!share) return;
        pen.fillStyle = `rgb(${share < 0 ? cool : warm} / ${drawn(column) ? Math.min(Math.abs(share) / most, 1) : 0})`;
        pen.fillRect(LEFT + x * width, top + y * height, Math.max(width - 1, 2), height - 1);
      });
      pen.fillStyle = ink;
      pen.textAlign = "right";
      pen.fillText(textOf(data.answer, answersOf(place)).slice(0, 18), LEFT - 6, top + (y + 0.5) * height);
    });
    if (width >= 11) along.forEach((column, x) => {
      pen.save();
      pen.translate(LEFT + (x + 0.5) * width, top - 5);
      pen.rotate(-Math.PI / 3);
      pen.textAlign = "left";
      pen.fillStyle = ink;
      pen.fillText(labelOf(column).slice(0, 14), 0, 0);
      pen.restore();
    });
  };
  const cellAt = (event) => {
    const box = canvas.getBoundingClientRect();
    const x = Math.floor((event.clientX - box.left - LEFT) / grid.width), y = Math.floor((event.clientY - box.top - grid.top) / grid.height);
    return x >= 0 && y >= 0 && x < grid.along.length && y < grid.down.length ? [grid.down[y], grid.along[x]] : null;
  };
  canvas.addEventListener("pointermove", (event) => {
    const cell = cellAt(event), box = $("cell");
    box.querySelector(".q").textContent = cell ? data.questions[cell[0]] : "";
    box.querySelector(".rests").textContent = cell ? `${percent(cellOf(rowOf(answersOf(cell[0])), cell[1]))} of it on ${data.groups[cell[1]] ? labelOf(cell[1]) : `'${labelOf(cell[1])}'`}` : "";
  });
  canvas.addEventListener("click", (event) => {
    const cell = cellAt(event);
    if (!cell) return;
    state.kept = { kind: "answer", place: cell[0] };
    choose("text");
  });
  const choose = (which) => {
    for (const name of ["text", "matrix"]) {
      $(`as-${name}`).setAttribute("aria-pressed", String(which === name));
      $(`${name}-view`).hidden = which !== name;
    }
    if (which === "matrix") draw(); else show();
  };
  const again = () => { layWords(); show(); if (!$("matrix-view").hidden) draw(); };

  $("bar").hidden = false;
  $("as-text").addEventListener("click", () => choose("text"));
  $("as-matrix").addEventListener("click", () => choose("matrix"));
  $("words").addEventListener("change", (event) => { state.words = event.target.checked; again(); });
  $("marks").addEventListener("change", (event) => { state.marks = event.target.checked; again(); });
  $("fold").addEventListener("change", (event) => fold(event.target.checked));
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", again);
  const long = spots.filter(({ answer }) => answer < 0).length > data.fold;
  const whole = overall();
  const first = whole.reduce((best, share, column) => (share > whole[best] ? column : best), 0);
  $("marks").checked = state.marks = special.has(first); // a token that attention is parked on would fade all others
  $("fold").checked = long;
  layWords();
  fold(long);
})();
