"use strict";
// Takes answers, keeps them in the browser where that is allowed, and saves them as the CSV that `review score` reads.
const data = document.getElementById("rows");
const rows = JSON.parse(data.textContent);
const kept = `shardlabel-review-${data.dataset.draw}`;
const form = document.querySelector(".filter");
const tiles = rows.map((_, index) => document.getElementById(`image-${index + 1}`));
const inputs = tiles.map(tile => tile.querySelector("input"));

function show() {
  const hides = form.elements.answered.value === "hide";
  let answered = 0;
  inputs.forEach((input, index) => {
    const answer = input.value.trim(), predicted = rows[index][2];
    answered += answer !== "";
    tiles[index].dataset.state = answer === "" ? "" : answer === predicted ? "right" : "wrong";
    tiles[index].hidden = hides && answer !== "" && input !== document.activeElement;
  });
  form.querySelector("output").value = `${answered} of ${rows.length} answered`;
}

function keep() {
  show();
  try { localStorage.setItem(kept, JSON.stringify(inputs.map(input => input.value))); } catch { /* a private window */ }
}

function quoted(text) {
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

function save() {
  const lines = rows.map(([shard, key], index) => [shard, key, inputs[index].value.trim()]);
  const text = [["shard", "key", "label"], ...lines].map(line => line.map(quoted).join(",") + "\r\n").join("");
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
  link.download = "answers.csv";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

document.addEventListener("click", event => {
  const button = event.target.closest(".answer button");
  if (button === null) return;
  const index = tiles.indexOf(button.closest("li"));
  inputs[index].value = button.value === "right" ? rows[index][2] : "none";
  keep();
});
document.addEventListener("change", keep);
form.elements.save.addEventListener("click", save);
form.addEventListener("submit", event => event.preventDefault());
try {
  JSON.parse(localStorage.getItem(kept) ?? "[]").forEach((answer, index) => { inputs[index].value = answer; });
} catch { /* as above */ }
for (const answer of document.querySelectorAll(".answer")) answer.hidden = false;
form.hidden = false;
show();
