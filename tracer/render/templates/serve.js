"use strict";
// The page that asks: sends what was typed and dropped to this machine's own server, and shows what comes back.
(() => {
  const $ = (id) => document.getElementById(id), form = $("form");
  const limits = JSON.parse($("limits").textContent);
  let asked = 0;

  const say = (text, error = false) => {
    $("state").textContent = text;
    $("state").classList.toggle("error", error);
  };
  const send = async (target) => {
    const data = new FormData(form), turn = ++asked, begun = Date.now();
    if (target) data.set("target", target);
    const size = [...data.values()].reduce((sum, one) => sum + (one.size === undefined ? one.length : one.size), 0);
    if (size > limits.bytes) { say(`too much: at most ${limits.bytes >> 20} MB`, true); return null; }
    const clock = setInterval(() => { if (turn === asked) say(`explaining ... ${Math.round((Date.now() - begun) / 1000)} s`); }, 500);
    $("go").disabled = true;
    say("explaining ...");
    try {
      const answer = await fetch("explain", { method: "POST", body: data });
      const found = await answer.json();
      if (turn !== asked) return null;
      if (found.error) { say(found.error, true); return null; }
      say(found.question);
      $("shown").src = found.page;
      $("shown").hidden = false;
      return found;
    } catch (error) {
      say(`the server does not answer: ${error.message}`, true);
      return null;
    } finally {
      clearInterval(clock);
      if (turn === asked) $("go").disabled = false;
    }
  };
  const choose = (button, target) => async () => {
    for (const other of $("choices").children) other.setAttribute("aria-pressed", String(other === button));
    await send(target);
  };
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const found = await send($("target").value.trim());
    $("choices").replaceChildren();
    (found ? found.choices : []).forEach((one, place) => {
      const button = document.createElement("button");
      button.type = "button";
      button.setAttribute("aria-pressed", String(place === 0));
      button.textContent = one.name;
      button.addEventListener("click", choose(button, one.target));
      $("choices").append(button);
    });
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });
  const taken = (drop, file) => {
    drop.querySelector("span").textContent = file ? file.name : "nothing chosen";
    const picture = drop.querySelector("img");
    if (!picture || !file) return;
    const reader = new FileReader();
    reader.onload = () => { picture.src = reader.result; picture.hidden = false; };
    reader.readAsDataURL(file);
  };
  document.querySelectorAll(".drop").forEach((drop) => {
    const input = drop.querySelector("input");
    input.addEventListener("change", () => taken(drop, input.files[0]));
    drop.addEventListener("dragover", (event) => { event.preventDefault(); drop.classList.add("over"); });
    drop.addEventListener("dragleave", () => drop.classList.remove("over"));
    drop.addEventListener("drop", (event) => {
      event.preventDefault();
      drop.classList.remove("over");
      if (!event.dataTransfer.files.length) return;
      input.files = event.dataTransfer.files;
      taken(drop, input.files[0]);
    });
  });
})();
