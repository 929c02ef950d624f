// Renews the figures every two seconds while somebody looks. The server has escaped all text.
"use strict";
const everyMs = 2000;
const live = document.getElementById("live");
const state = document.getElementById("state");
let lastAt = new Date();

function isTyping() {
  const field = document.activeElement;
  return live.contains(field) && field.tagName === "INPUT";
}

async function renew() {
  if (document.hidden || isTyping()) return;
  try {
    const answer = await fetch("/", { headers: { accept: "text/html" }, cache: "no-store" });
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    const fresh = page.getElementById("live");
    if (!fresh) {
      location.reload(); // signed out: the form is shown
      return;
    }
    const scrolled = [...live.querySelectorAll(".scroll")].map((box) => box.scrollLeft);
    live.replaceChildren(...fresh.childNodes);
    live.querySelectorAll(".scroll").forEach((box, i) => (box.scrollLeft = scrolled[i] || 0));
    lastAt = new Date();
    state.textContent = "";
  } catch {
    state.textContent = `No answer since ${lastAt.toLocaleTimeString()}`;
  }
}

setInterval(renew, everyMs);
document.addEventListener("visibilitychange", renew);
