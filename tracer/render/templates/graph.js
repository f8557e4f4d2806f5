"use strict";
// The drawing: what is folded, what is filtered, where it lies (dagre), and how it is moved about (d3-zoom).
window.graphPage = (() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const state = { open: new Set(), kinds: new Set(), streams: new Set(), search: "", selected: null, token: null };
  const look = data.look;
  const WIDE = 236, LETTERS = 31, STREAM = 28;
  const HIGH = look && Object.keys(look.passed).length ? 60 : 44;
  const changed = []; // what else is to be drawn anew, when something is chosen

  const svgOf = (name, attributes = {}, ...children) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...children);
    return made;
  };
  const htmlOf = (name, attributes = {}, ...children) => {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) if (value !== null) made.setAttribute(key, value);
    made.append(...children);
    return made;
  };
  const floats = (text) => new Float32Array(Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)).buffer);
  const percent = (share) => `${(share * 100).toFixed(Math.abs(share) < 0.0995 ? 1 : 0)} %`;
  const cut = (text, most) => (text.length > most ? `…${text.slice(text.length - most + 1)}` : text);

  // -- relevance on its way
  const passed = new Map(Object.entries(look ? look.passed : {}).map(([id, text]) => [id, floats(text)]));
  const relevance = look ? floats(look.relevance) : new Float32Array();
  const total = (values) => values.reduce((sum, value) => sum + value, 0);
  const whole = total(relevance);
  const shareOf = (site) => {
    if (!passed.has(site)) return null;
    const own = passed.get(site), token = state.token;
    const [part, all] = token === null ? [total(own), whole] : [own[token], relevance[token]];
    return all ? part / all : 0;
  };

  // -- boxes: one for each step, for a chain, or for the same step of every repeat
  const first = (step) => (typeof step === "string" ? step : step.chain[0]);
  const membersOf = (step) => (typeof step === "string" ? [step] : step.chain);
  const boxes = () => {
    const found = [];
    const put = (steps, frame, copies) => found.push({ id: first(steps[0]), sites: steps.flatMap(membersOf), chain: typeof steps[0] !== "string", frame, copies });
    const single = (step, frame) => {
      const group = typeof step === "string" ? null : `chain:${first(step)}`;
      if (group && state.open.has(group)) for (const member of step.chain) put([member], group, 1);
      else put([step], frame, 1);
    };
    for (const item of data.items) {
      if (!item.copies) single(item, null);
      else if (state.open.has(groupOf(item))) for (const copy of item.copies) for (const step of copy) single(step, groupOf(item));
      else item.copies[0].forEach((_, place) => put(item.copies.map((copy) => copy[place]), groupOf(item), item.copies.length));
    }
    for (const box of found) box.sites = box.sites.filter(wanted);
    return found.filter((box) => box.sites.length);
  };
  const groupOf = (item) => `repeat:${first(item.copies[0][0])}`;
  const groups = new Map(); // what can be unfolded: id -> { words, sites }
  const copyOf = new Map(); // site -> [group, which repeat]
  for (const item of data.items) {
    const steps = item.copies ? item.copies.flat() : [item];
    if (item.copies) {
      groups.set(groupOf(item), { times: item.copies.length, sites: steps.flatMap(membersOf) });
      item.copies.forEach((copy, number) => copy.flatMap(membersOf).forEach((site) => copyOf.set(site, [groupOf(item), number])));
    }
    for (const step of steps) if (typeof step !== "string") groups.set(`chain:${first(step)}`, { times: step.chain.length, sites: step.chain, chain: true });
  }
  const wanted = (site) => !state.kinds.has(data.nodes[site].kind) && !state.streams.has(data.nodes[site].queries);
  const matches = (site) => {
    const node = data.nodes[site], text = state.search.trim().toLowerCase();
    return !text || [node.module, node.name, node.op, node.source].some((one) => String(one || "").toLowerCase().includes(text));
  };

  // -- edges between boxes; what is filtered out is gone through
  const into = new Map();
  for (const [from, to, role] of data.edges) into.set(to, [...(into.get(to) || []), [from, role]]);
  const edges = (owner) => {
    const found = new Map();
    const sources = (id, seen) => {
      if (id in data.streams || owner.has(id)) return [id];
      if (seen.has(id)) return [];
      seen.add(id);
      return (into.get(id) || []).flatMap(([from]) => sources(from, seen));
    };
    for (const [site, box] of owner) {
      for (const [from, role] of into.get(site) || []) {
        for (const source of sources(from, new Set())) {
          const other = owner.get(source), a = copyOf.get(source), b = copyOf.get(site);
          const again = a && b && a[0] === b[0] && a[1] !== b[1] && !state.open.has(a[0]);
          if (again || (other && other.id === box.id)) continue;
          const edge = { from: other ? other.id : source, to: box.id, role };
          const name = `${edge.from}\n${edge.to}`;
          if (!found.has(name) || role === "query") found.set(name, edge);
        }
      }
    }
    return [...found.values()];
  };

  const layout = () => {
    const graph = new dagre.graphlib.Graph({ compound: true }).setDefaultEdgeLabel(() => ({}));
    graph.setGraph({ rankdir: "TB", nodesep: 28, ranksep: 44, marginx: 26, marginy: 30 });
    const shown = boxes(), owner = new Map(shown.flatMap((box) => box.sites.map((site) => [site, box])));
    for (const box of shown) {
      graph.setNode(box.id, { width: WIDE, height: HIGH, box });
      if (!box.frame) continue;
      if (!graph.hasNode(box.frame)) graph.setNode(box.frame, { frame: box.frame });
      graph.setParent(box.id, box.frame);
    }
    for (const group of state.open) { // a chain that is open inside a repeat that is open
      const outside = copyOf.get(groups.get(group).sites[0]);
      if (group.startsWith("chain:") && outside && graph.hasNode(group) && graph.hasNode(outside[0])) graph.setParent(group, outside[0]);
    }
    for (const edge of edges(owner)) {
      if (edge.from in data.streams && !graph.hasNode(edge.from)) graph.setNode(edge.from, { width: 190, height: STREAM, stream: data.streams[edge.from] });
      graph.setEdge(edge.from, edge.to, { ...edge, weight: edge.role === "query" ? 6 : 1 });
    }
    dagre.layout(graph);
    return graph;
  };

  // -- the drawing
  const svg = $("stage"), scene = svg.appendChild(svgOf("g")), box = new Map();
  let drawn = null;
  const zoom = d3.zoom().scaleExtent([0.04, 4]).on("zoom", (event) => scene.setAttribute("transform", event.transform));
  d3.select(svg).call(zoom).on("dblclick.zoom", null);
  const moved = (transform, quickly) => {
    const still = quickly || matchMedia("(prefers-reduced-motion: reduce)").matches;
    (still ? d3.select(svg) : d3.select(svg).transition().duration(250)).call(zoom.transform, transform);
  };
  const fit = (quickly) => {
    if (!box.size) return;
    const { width, height } = drawn.graph(), { width: across, height: down } = svg.getBoundingClientRect();
    const k = Math.max(Math.min(across / width, down / height, 1.25), Math.min(across / width, 0.6));
    moved(d3.zoomIdentity.translate((across - width * k) / 2, height * k < down ? (down - height * k) / 2 : 0).scale(k), quickly);
  };
  const reveal = (id) => {
    const node = drawn.node(id), now = d3.zoomTransform(svg), { width, height } = svg.getBoundingClientRect();
    const [x, y] = now.apply([node.x, node.y]);
    const k = Math.max(now.k, 0.7);
    if (x > 60 && y > 40 && x < width - 60 && y < height - 40 && now.k >= 0.4) return;
    moved(d3.zoomIdentity.translate(width / 2 - node.x * k, height / 2 - node.y * k).scale(k));
  };

  const path = (points) => {
    const [start, ...rest] = points;
    let text = `M${start.x.toFixed(1)} ${start.y.toFixed(1)}`;
    rest.forEach((point, place) => {
      const next = rest[place + 1];
      if (next) text += ` Q${point.x.toFixed(1)} ${point.y.toFixed(1)} ${((point.x + next.x) / 2).toFixed(1)} ${((point.y + next.y) / 2).toFixed(1)}`;
      else text += ` L${point.x.toFixed(1)} ${point.y.toFixed(1)}`;
    });
    return text;
  };
  const ROLES = { query: "carries on", key: "gives the keys and values", feed: "becomes part of the stream" };
  const drawEdge = (edge) => {
    const made = svgOf("path", { class: `edge ${edge.role}`, d: path(edge.points), "marker-end": `url(#arrow-${edge.role})` });
    made.append(svgOf("title", {}, ROLES[edge.role]));
    return made;
  };
  const numbers = (one, other) => { // layer.0.attn and layer.11.attn: layer.0…11.attn
    const [a, b] = [one, other].map((text) => text.split(/(\d+)/));
    return a.length === b.length ? a.map((part, place) => (part === b[place] ? part : `${part}…${b[place]}`)).join("") : one;
  };
  const titleOf = (one) => {
    const [start, end] = [data.nodes[one.sites[0]], data.nodes[one.sites[one.sites.length - 1]]];
    if (one.chain) return `${one.sites.length / one.copies} mixing steps${one.copies > 1 ? ` × ${one.copies}` : ""}`;
    return one.copies > 1 ? numbers(start.short, end.short) : start.short;
  };
  const detailOf = (one) => {
    const node = data.nodes[one.sites[one.sites.length - 1]];
    const size = String(node.size || "").replace(" x ", " × ");
    if (node.role === "mixing") return one.chain ? `→ ${node.queries}` : `${node.op || "mixing"} · ${size}`;
    return `${one.copies > 1 ? `× ${one.copies}` : `#${node.index}`} · ${node.heads ?? "?"} head${node.heads === 1 ? "" : "s"} · ${size}`;
  };
  const drawBox = (node) => {
    const one = node.box, kind = data.nodes[one.sites[0]].kind, [x, y] = [node.x - WIDE / 2, node.y - HIGH / 2];
    const words = `${titleOf(one)}, ${data.kinds[kind]}, ${detailOf(one)}`;
    const made = svgOf("g", { class: `site k-${kind}`, transform: `translate(${x} ${y})`, tabindex: -1, role: "button", "aria-label": words, "data-id": one.id });
    made.append(
      svgOf("title", {}, `${words}\n${data.nodes[one.sites[0]].queries} from ${data.nodes[one.sites[0]].keys}`),
      ...(one.copies > 1 ? [8, 4].map((off) => svgOf("rect", { class: "behind", x: off, y: off, width: WIDE, height: HIGH, rx: 6 })) : []),
      svgOf("rect", { class: "fill", width: WIDE, height: HIGH, rx: 6 }),
      svgOf("rect", { class: "tint", width: WIDE, height: HIGH, rx: 6 }),
      svgOf("rect", { class: "bar", width: 5, height: HIGH, rx: 2.5 }),
      svgOf("text", { class: "mono", x: 13, y: 17 }, cut(titleOf(one), LETTERS)),
      svgOf("text", { class: "small", x: 13, y: 34 }, cut(detailOf(one), LETTERS + 4)),
      svgOf("g", { class: "shares", transform: `translate(13 ${HIGH - 21})` }),
    );
    box.set(one.id, { one, made });
    return made;
  };
  const drawStream = (node) => {
    const made = svgOf("g", { class: "stream", transform: `translate(${node.x - node.width / 2} ${node.y - STREAM / 2})` });
    const size = node.stream.size == null ? "" : ` · ${node.stream.size}`;
    made.append(
      svgOf("title", {}, `stream ${node.stream.name}${size ? `, ${node.stream.size} tokens` : ""}`),
      svgOf("rect", { width: node.width, height: STREAM, rx: STREAM / 2 }),
      svgOf("text", { x: node.width / 2, y: 18, "text-anchor": "middle" }, cut(node.stream.name, 26 - size.length) + size),
    );
    return made;
  };
  const drawFrame = (id, node) => {
    const group = groups.get(id), open = state.open.has(id);
    const [x, y] = [node.x - node.width / 2 - 8, node.y - node.height / 2 - 8];
    const words = group.chain ? `${group.times} steps` : `× ${group.times}`;
    const label = svgOf("g", { class: "fold", transform: `translate(${x + 10} ${y - 11})`, tabindex: 0, role: "button", "aria-expanded": open, "aria-label": `${words}, ${open ? "fold" : "unfold"}`, "data-fold": id });
    const text = `${words}  ${open ? "fold" : "unfold"}`;
    label.append(svgOf("rect", { width: text.length * 7 + 16, height: 22, rx: 11 }), svgOf("text", { x: 9, y: 15 }, text));
    return [svgOf("rect", { class: "frame", x, y, width: node.width + 16, height: node.height + 16, rx: 10 }), label];
  };
  const draw = () => {
    drawn = layout();
    const nodes = drawn.nodes().map((id) => [id, drawn.node(id)]);
    const frames = nodes.filter(([, node]) => node.frame).map(([id, node]) => drawFrame(id, node));
    box.clear();
    scene.replaceChildren(
      ...frames.map(([frame]) => frame),
      ...drawn.edges().map((edge) => drawEdge(drawn.edge(edge))),
      ...nodes.filter(([, node]) => node.stream).map(([, node]) => drawStream(node)),
      ...nodes.filter(([, node]) => node.box).map(([, node]) => drawBox(node)),
      ...frames.map(([, label]) => label),
    );
    paint();
  };
  const boxOf = (site) => [...box.values()].find(({ one }) => one.sites.includes(site));
  const paint = () => { // everything that is not where things lie
    const hits = Object.keys(data.nodes).filter((site) => wanted(site) && matches(site));
    $("found").textContent = state.search.trim() ? `${hits.length} of ${Object.keys(data.nodes).length}` : "";
    let entered = false;
    for (const { one, made } of box.values()) {
      const on = one.sites.includes(state.selected);
      made.classList.toggle("dim", !one.sites.some(matches));
      made.classList.toggle("on", on);
      made.setAttribute("tabindex", on ? 0 : -1);
      entered = entered || on;
      paintShares(one, made.querySelector(".shares"));
    }
    if (!entered && box.size) box.values().next().value.made.setAttribute("tabindex", 0);
    $("nothing").hidden = box.size > 0;
  };
  const paintShares = (one, place) => {
    const shares = one.sites.map(shareOf);
    if (shares.every((share) => share === null)) return place.replaceChildren();
    const across = WIDE - 26;
    if (one.sites.length === 1) {
      const [share] = shares;
      return place.replaceChildren(
        svgOf("rect", { class: "track", y: 5, width: across - 46, height: 7, rx: 3 }),
        svgOf("rect", { class: "share", y: 5, width: Math.max(0, Math.min(1, share)) * (across - 46), height: 7, rx: 3 }),
        svgOf("text", { class: "small", x: across, y: 12, "text-anchor": "end" }, percent(share)),
      );
    }
    const most = Math.max(...shares.map((share) => share || 0), 1e-12), wide = across / shares.length;
    return place.replaceChildren(...shares.map((share, number) => {
      const high = Math.max(1, (Math.max(share || 0, 0) / most) * 16);
      const made = svgOf("rect", { class: one.sites[number] === state.selected ? "share on" : "share", x: number * wide, y: 17 - high, width: Math.max(wide - 1, 0.8), height: high, "data-site": one.sites[number] });
      made.append(svgOf("title", {}, `${data.nodes[one.sites[number]].short}: ${percent(share || 0)}`));
      return made;
    }));
  };

  // -- what a person does
  const tell = () => { paint(); for (const one of changed) one(); };
  const select = (site, showIt = true) => {
    state.selected = site;
    const found = site && boxOf(site);
    tell();
    if (found && showIt) reveal(found.one.id);
  };
  const setToken = (token) => { state.token = token; tell(); };
  const fold = (id) => {
    state.open.has(id) ? state.open.delete(id) : state.open.add(id);
    draw();
    scene.querySelector(`[data-fold="${CSS.escape(id)}"]`)?.focus({ preventScroll: true });
    const inside = groups.get(id).sites.map(boxOf).find(Boolean);
    if (inside) reveal(inside.one.id);
  };
  const pressed = (target) => {
    const label = target.closest("[data-fold]");
    if (label) return fold(label.dataset.fold);
    const site = target.closest("[data-site]"), made = target.closest("[data-id]");
    if (site) return select(site.dataset.site, false);
    if (!made) return select(null);
    const { one } = box.get(made.dataset.id);
    return select(one.sites.includes(state.selected) ? state.selected : one.sites.find(matches) || one.sites[0], false);
  };
  const nearest = (id, [dx, dy]) => {
    const here = drawn.node(id);
    const all = [...box.keys()].filter((other) => other !== id).map((other) => {
      const there = drawn.node(other), [x, y] = [there.x - here.x, there.y - here.y];
      const ahead = x * dx + y * dy, aside = Math.abs(x * dy) + Math.abs(y * dx);
      return { other, ahead, cost: ahead + 3 * aside };
    });
    return all.filter(({ ahead, cost }) => ahead > 1 && cost < 4 * ahead + 400).sort((a, b) => a.cost - b.cost)[0]?.other;
  };
  const ARROWS = { ArrowUp: [0, -1], ArrowDown: [0, 1], ArrowLeft: [-1, 0], ArrowRight: [1, 0] };
  scene.addEventListener("keydown", (event) => {
    if (event.key === "Enter" || event.key === " ") { event.preventDefault(); return pressed(event.target); }
    const made = event.target.closest("[data-id]"), other = made && ARROWS[event.key] && nearest(made.dataset.id, ARROWS[event.key]);
    if (!other) return undefined;
    event.preventDefault();
    for (const { made: one } of box.values()) one.setAttribute("tabindex", -1);
    box.get(other).made.setAttribute("tabindex", 0);
    box.get(other).made.focus({ preventScroll: true });
    return reveal(other);
  });
  svg.addEventListener("click", (event) => pressed(event.target));
  $("search").addEventListener("input", (event) => { state.search = event.target.value; paint(); });
  $("search").addEventListener("keydown", (event) => {
    if (event.key !== "Enter") return;
    const hits = Object.keys(data.nodes).filter((site) => wanted(site) && matches(site));
    if (hits.length) select(hits[(hits.indexOf(state.selected) + 1) % hits.length]);
  });
  for (const [name, hidden] of [["kind", state.kinds], ["stream", state.streams]]) {
    document.querySelectorAll(`[data-${name}]`).forEach((input) => input.addEventListener("change", () => {
      input.checked ? hidden.delete(input.dataset[name]) : hidden.add(input.dataset[name]);
      draw();
      fit();
    }));
  }
  $("fit").addEventListener("click", () => fit());
  $("closer").addEventListener("click", () => d3.select(svg).call(zoom.scaleBy, 1.3));
  $("farther").addEventListener("click", () => d3.select(svg).call(zoom.scaleBy, 1 / 1.3));
  $("unfold").hidden = !groups.size;
  $("unfold").addEventListener("click", (event) => {
    const open = state.open.size < groups.size;
    state.open = new Set(open ? groups.keys() : []);
    event.target.textContent = open ? "fold all" : "unfold all";
    draw();
    fit();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") {
      state.selected = null;
      setToken(null);
    }
    if (event.target.matches("input, canvas, select") || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "/") { event.preventDefault(); $("search").focus(); }
    if (event.key === "+" || event.key === "=") $("closer").click();
    if (event.key === "-") $("farther").click();
    if (event.key === "0") fit();
  });
  // on paper the whole drawing, whatever part of it is on the screen
  window.addEventListener("beforeprint", () => {
    const { width, height } = drawn.graph();
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    scene.dataset.before = scene.getAttribute("transform");
    scene.removeAttribute("transform");
  });
  window.addEventListener("afterprint", () => {
    svg.removeAttribute("viewBox");
    scene.setAttribute("transform", scene.dataset.before);
  });
  const start = () => { draw(); fit(true); tell(); };
  return { data, look, state, $, htmlOf, floats, percent, relevance, passed, shareOf, copyOf, groups, changed, select, setToken, tell, start };
})();
