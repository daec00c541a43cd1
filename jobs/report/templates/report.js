"use strict";
(() => {
  const controls = document.getElementById("controls");
  if (controls) {
    const cards = [...document.querySelectorAll("#gallery .card")];
    const texts = cards.map((card) => card.textContent.toLowerCase());
    const buttons = [...controls.querySelectorAll("button")];
    const search = document.getElementById("search");
    const found = document.getElementById("found");
    const more = document.getElementById("more");
    const page = window.innerWidth < 640 ? 12 : 24;
    let group = "";
    let limit = page;
    const show = () => {
      const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      let count = 0;
      cards.forEach((card, i) => {
        const fits = (!group || card.dataset.group === group) && words.every((word) => texts[i].includes(word));
        count += fits;
        card.hidden = !fits || count > limit;
        const video = card.querySelector("video");
        if (card.hidden && video) video.pause();
      });
      const all = count === cards.length;
      found.textContent = all ? "" : count === 0 ? "no clip matches" : `${count} of ${cards.length}`;
      more.hidden = count <= limit;
      more.firstElementChild.textContent = `Show ${count - limit} more`;
    };
    buttons.forEach((button) => button.addEventListener("click", () => {
      group = button.dataset.group;
      limit = page;
      buttons.forEach((one) => one.setAttribute("aria-pressed", String(one === button)));
      show();
    }));
    search.addEventListener("input", show);
    more.firstElementChild.addEventListener("click", () => {
      limit = cards.length;
      show();
    });
    controls.hidden = false;
    show();
  }
  // Native controls would hide half of a small clip: a click plays and pauses it instead.
  document.querySelectorAll(".frame video").forEach((video) => {
    const button = document.createElement("button");
    const label = video.getAttribute("aria-label");
    button.type = "button";
    button.className = "play";
    const toggle = () => { if (video.paused) video.play().catch(() => {}); else video.pause(); };
    const update = () => {
      button.classList.toggle("playing", !video.paused);
      button.setAttribute("aria-label", `${video.paused ? "Play" : "Pause"}: ${label}`);
    };
    video.controls = false;
    button.addEventListener("click", toggle);
    ["play", "pause"].forEach((name) => video.addEventListener(name, update));
    video.after(button);
    update();
  });
  // One clip at a time: starting one stops the others.
  document.addEventListener("play", (event) => {
    document.querySelectorAll("video").forEach((video) => { if (video !== event.target) video.pause(); });
  }, true);
})();
