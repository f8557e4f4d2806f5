// What lies beside the drawing: an attention with its heads' maps, or, where none is chosen, all of them in a list.
(() => {
  const page = window.graphPage, { data, look, state, $, htmlOf, percent, copyOf, groups, changed } = page;
  const heads = { head: -1, weighed: false, lines: false, row: 0, column: 0 };
  let shown = null; // { site, maps, values, rows, columns } of the maps on the screen

  const button = (text, does, more = {}) => {
    const made = htmlOf("button", { type: "button", ...more }, text);
    made.addEventListener("click", does);
    return made;
  };

  // -- facts of one step
  const FACTS = [["source", "source"], ["queries", "queries"], ["keys", "keys"], ["size", "size"], ["heads", "heads"], ["layer", "layer"], ["op", "operation"], ["normaliser", "normalised by"], ["windows", "windows"], ["window", "window"], ["node", "node"]];
  const facts = (node) => {
    const rows = FACTS.filter(([key]) => node[key] !== undefined && node[key] !== "" && !(key.startsWith("window") && node.windows < 2));
    const list = htmlOf("dl");
    for (const [key, words] of rows) list.append(htmlOf("dt", {}, words), htmlOf("dd", {}, String(node[key])));
    if (node.fused) list.append(htmlOf("dt", {}, "how"), htmlOf("dd", {}, "fused: the map is rebuilt from queries and keys"));
    return list;
  };
  const stepper = (site) => {
    const place = copyOf.get(site);
    if (!place) return [];
    const group = groups.get(place[0]), per = group.sites.length / group.times, offset = group.sites.indexOf(site) % per;
    const to = (number) => page.select(group.sites[number * per + offset], false);
    const range = htmlOf("input", { type: "range", min: 1, max: group.times, value: place[1] + 1, "aria-label": "which repeat" });
    range.addEventListener("input", () => { to(Number(range.value) - 1); $("panel").querySelector("input[type=range]").focus(); });
    return [htmlOf("div", { class: "stepper" },
      button("‹", () => place[1] > 0 && to(place[1] - 1), { "aria-label": "the repeat before" }),
      range,
      button("›", () => place[1] + 1 < group.times && to(place[1] + 1), { "aria-label": "the next repeat" }),
      htmlOf("span", {}, `${place[1] + 1} of ${group.times}`))];
  };
  const shareWords = (site) => {
    const share = page.shareOf(site);
    if (share === null) return [];
    const of = state.token === null ? "the relevance" : `the relevance of '${look.tokens[state.token]}'`;
    return [htmlOf("p", { class: "through" }, htmlOf("b", {}, percent(share)), ` of ${of} comes through it: without it, that much less would arrive.`)];
  };

  // -- maps
  const unpacked = async (text) => {
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  };
  const tokensOf = (name) => (look.streams[name] || []).flatMap(([first, end]) => Array.from({ length: end - first }, (_, place) => first + place));
  const cellsOf = (name, per, count) => {
    const tokens = tokensOf(name);
    return Array.from({ length: count }, (_, place) => tokens.slice(place * per, (place + 1) * per));
  };
  const nameOf = (cell) => (cell.length > 1 ? `${look.tokens[cell[0]]} … ${look.tokens[cell[cell.length - 1]]}` : look.tokens[cell[0]] ?? "?");
  const load = async (site) => {
    const maps = look.maps[site], weighed = heads.weighed && maps.weighed;
    const bytes = await unpacked(weighed ? maps.weighed : maps.weights);
    const largest = weighed ? maps.largest_weighed : maps.largest, cells = maps.rows * maps.columns;
    const of = Array.from({ length: maps.heads }, (_, head) => Float32Array.from(bytes.subarray(head * cells, (head + 1) * cells), (byte) => (byte / 255) * largest[head]));
    const mean = new Float32Array(cells);
    for (const one of of) for (let cell = 0; cell < cells; cell++) mean[cell] += one[cell] / of.length;
    const node = data.nodes[site];
    return { site, maps, weighed, of, mean, rows: cellsOf(node.queries, maps.per_row, maps.rows), columns: cellsOf(node.keys, maps.per_column, maps.columns) };
  };
  const valuesOf = (head) => (head < 0 ? shown.mean : shown.of[head]);
  const ink = () => getComputedStyle(document.documentElement).getPropertyValue("--warm").trim();
  const paintMap = (canvas, values, across, down, step) => {
    canvas.width = across * step;
    canvas.height = down * step;
    const pen = canvas.getContext("2d"), most = values.reduce((a, b) => Math.max(a, b), 0) || 1, warm = ink();
    for (let cell = 0; cell < values.length; cell++) {
      const strong = values[cell] / most;
      if (strong < 0.004) continue;
      pen.fillStyle = `rgb(${warm} / ${strong.toFixed(3)})`;
      pen.fillRect((cell % across) * step, Math.floor(cell / across) * step, step, step);
    }
  };
  const headName = (head) => (head < 0 ? "mean" : `head ${head}`);
  const thumbs = () => {
    const list = htmlOf("div", { class: "heads", role: "radiogroup", "aria-label": "heads" });
    for (let head = shown.of.length > 1 ? -1 : 0; head < shown.of.length; head++) {
      const canvas = htmlOf("canvas"), { rows, columns } = shown.maps;
      paintMap(canvas, valuesOf(head), columns, rows, 1);
      const made = button("", () => { heads.head = head; redraw(); $("panel").querySelector("[aria-checked=true]")?.focus(); }, { role: "radio", "aria-checked": head === heads.head, title: headName(head), "aria-label": headName(head) });
      made.append(canvas, head < 0 ? "mean" : String(head));
      list.append(made);
    }
    return list;
  };
  const MAP = 360;
  const cursor = () => { // what the cell under the cursor says
    const { rows, columns, maps } = shown, value = valuesOf(heads.head)[heads.row * maps.columns + heads.column];
    $("cell").textContent = `'${nameOf(rows[heads.row])}' reads '${nameOf(columns[heads.column])}': ${value < 0.001 ? value.toExponential(1) : value.toFixed(3)}`;
  };
  const read = () => { // the row under the cursor, on the tokens above
    const { rows, columns, maps, site } = shown, values = valuesOf(heads.head), weights = new Map();
    columns.forEach((cell, place) => cell.forEach((token) => weights.set(token, (weights.get(token) || 0) + values[heads.row * maps.columns + place])));
    page.reading = { words: `'${nameOf(rows[heads.row])}' in ${data.nodes[site].short}, ${headName(heads.head)}${shown.weighed ? ", times the gradient" : ""}`, queries: rows[heads.row], weights };
    page.tell();
  };
  const bigMap = () => {
    const { rows, columns } = shown.maps;
    const step = Math.max(1, Math.min(18, Math.floor(MAP / Math.max(columns, rows))));
    const canvas = htmlOf("canvas", { class: "map", tabindex: 0, role: "application", "aria-label": "map: arrows move, Enter shows what the query reads", "aria-describedby": "cell" });
    paintMap(canvas, valuesOf(heads.head), columns, rows, step);
    canvas.style.width = `${Math.max(columns * step, Math.min(MAP, columns * 18))}px`;
    canvas.style.aspectRatio = `${columns} / ${rows}`;
    const at = (event) => {
      const area = canvas.getBoundingClientRect();
      heads.column = Math.max(0, Math.min(columns - 1, Math.floor(((event.clientX - area.left) / area.width) * columns)));
      heads.row = Math.max(0, Math.min(rows - 1, Math.floor(((event.clientY - area.top) / area.height) * rows)));
      cursor();
    };
    canvas.addEventListener("pointermove", at);
    canvas.addEventListener("click", (event) => { at(event); read(); });
    canvas.addEventListener("keydown", (event) => {
      const [down, right] = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key] || [0, 0];
      if (down || right) {
        event.preventDefault();
        heads.row = Math.max(0, Math.min(rows - 1, heads.row + down));
        heads.column = Math.max(0, Math.min(columns - 1, heads.column + right));
        cursor();
      }
      if (event.key === "Enter" || event.key === " ") { event.preventDefault(); read(); }
    });
    return htmlOf("div", { class: "axes" }, htmlOf("small", { class: "down" }, "queries ↓"), htmlOf("small", { class: "along" }, "keys →"), canvas);
  };
  const LINES = 64;
  const svgOf = (name, attributes, ...children) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...children);
    return made;
  };
  const lines = () => {
    const { rows, columns, maps } = shown, values = valuesOf(heads.head), most = values.reduce((a, b) => Math.max(a, b), 0) || 1;
    if (Math.max(maps.rows, maps.columns) > LINES) return htmlOf("p", { class: "soft" }, `Lines are drawn for up to ${LINES} tokens on a side; the map shows them all.`);
    const step = 17, high = Math.max(maps.rows, maps.columns) * step + 8, made = svgOf("svg", { class: "lines", viewBox: `0 0 380 ${high}`, width: 380, height: high, role: "img", "aria-label": "from each query to the keys it reads" });
    for (let cell = 0; cell < values.length; cell++) {
      const strong = values[cell] / most, row = Math.floor(cell / maps.columns);
      if (strong < 0.04) continue;
      made.append(svgOf("line", { x1: 132, x2: 248, y1: row * step + 10, y2: (cell % maps.columns) * step + 10, "data-row": row, "stroke-opacity": strong.toFixed(3) }));
    }
    rows.forEach((row, place) => {
      const text = svgOf("text", { x: 126, y: place * step + 14, "text-anchor": "end", tabindex: 0, role: "button", "data-query": place }, nameOf(row).slice(0, 18));
      made.append(text);
    });
    columns.forEach((column, place) => made.append(svgOf("text", { x: 254, y: place * step + 14 }, nameOf(column).slice(0, 18))));
    const only = (event) => {
      const query = event.target.dataset?.query;
      made.querySelectorAll("line").forEach((line) => line.classList.toggle("off", query !== undefined && line.dataset.row !== query));
    };
    for (const kind of ["pointerover", "focusin"]) made.addEventListener(kind, only);
    const pick = (event) => { if (event.target.dataset.query !== undefined) { heads.row = Number(event.target.dataset.query); cursor(); read(); } };
    made.addEventListener("click", pick);
    made.addEventListener("keydown", (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); pick(event); } });
    return made;
  };
  const redraw = () => {
    const place = $("maps");
    if (!place || !shown) return;
    heads.head = Math.min(heads.head, shown.of.length - 1);
    if (shown.of.length < 2) heads.head = 0;
    heads.row = Math.min(heads.row, shown.maps.rows - 1);
    heads.column = Math.min(heads.column, shown.maps.columns - 1);
    const option = (words, on, does) => button(words, does, { "aria-pressed": on });
    const bar = htmlOf("div", { class: "views" },
      option("map", !heads.lines, () => { heads.lines = false; redraw(); }), option("lines", heads.lines, () => { heads.lines = true; redraw(); }));
    const parts = [bar];
    if (shown.maps.weighed) parts.push(htmlOf("div", { class: "views" },
      option("attention", !heads.weighed, () => { heads.weighed = false; maps(shown.site); }),
      option("× gradient", heads.weighed, () => { heads.weighed = true; maps(shown.site); })));
    const { per_row: rows, per_column: columns } = shown.maps;
    const coarse = rows > 1 || columns > 1 ? [htmlOf("p", { class: "soft" }, `A cell stands for ${rows} × ${columns} tokens, by the largest weight among them.`)] : [];
    const strange = shown.weighed ? [htmlOf("p", { class: "soft" }, "The attention times the gradient of the score, what is negative left out: what the relevancy is made of.")] : [];
    place.replaceChildren(htmlOf("div", { class: "bar" }, ...parts), thumbs(), ...strange, ...coarse, htmlOf("p", { id: "cell", "aria-live": "polite" }), heads.lines ? lines() : bigMap());
    cursor();
  };
  const maps = async (site) => {
    const found = await load(site);
    if (state.selected !== site) return;
    shown = found;
    redraw();
  };
  const headsOf = (site) => {
    if (!look) return [];
    if (look.leftOut[site]) return [htmlOf("p", { class: "soft" }, look.leftOut[site])];
    return look.maps[site] ? [htmlOf("h3", {}, "Heads"), htmlOf("div", { id: "maps" })] : [];
  };

  // -- everything in a list
  const rowOf = (site) => {
    const node = data.nodes[site], share = page.shareOf(site);
    const made = button("", () => page.select(site), { class: `row k-${node.kind}` });
    made.append(htmlOf("span", { class: "kind name" }, node.short));
    if (share !== null) {
      const full = htmlOf("i", { class: "full" }), bar = htmlOf("i");
      bar.style.width = `${Math.max(0, Math.min(1, share)) * 100}%`;
      full.append(bar);
      made.append(full, htmlOf("small", {}, percent(share)));
    }
    return made;
  };
  const list = () => {
    const words = !page.passed.size ? "Attentions and mixing steps" : state.token === null ? "Relevance on its way" : `The way of '${look.tokens[state.token]}'`;
    const said = page.passed.size ? [htmlOf("p", { class: "soft" }, "What part comes through each attention: so much less would arrive without it. A path goes through several, so they need not add up to 100 %.")] : [];
    const sites = Object.keys(data.nodes).filter((site) => !page.passed.size || page.passed.has(site));
    return [htmlOf("h2", {}, words), ...said, htmlOf("div", { class: "list" }, ...sites.map(rowOf))];
  };
  let last; // of a step only the share changes with the token: its maps stay as they are
  const show = () => {
    const panel = $("panel"), site = state.selected;
    if (site === null) {
      last = shown = null;
      page.reading = null;
      return panel.replaceChildren(...list());
    }
    if (last === site) return panel.querySelector(".share-of").replaceChildren(...shareWords(site));
    if (page.reading) page.reading = null;
    last = site;
    shown = null;
    const node = data.nodes[site];
    panel.replaceChildren(
      button("×", () => page.select(null), { class: "close", "aria-label": "close" }),
      htmlOf("h2", {}, node.module || node.name || site),
      htmlOf("p", { class: `kind k-${node.kind}` }, `${data.kinds[node.kind]} #${node.index}`),
      ...stepper(site), htmlOf("div", { class: "share-of" }, ...shareWords(site)), facts(node), ...headsOf(site));
    if (look && look.maps[site]) maps(site);
    return undefined;
  };
  changed.unshift(show); // before the tokens, which show what it reads
  document.querySelectorAll("[data-step]").forEach((one) => one.addEventListener("click", () => { page.select(one.dataset.step); $("stage").scrollIntoView({ block: "nearest" }); }));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  page.start();
})();
