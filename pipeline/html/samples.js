"use strict";
// Shows the samples that match the form. Without script all samples are shown, and the form is hidden.
const form = document.querySelector(".filter");
const samples = [...document.querySelectorAll(".sheet li")];

function isWanted({ label, status, score }) {
  const wanted = form.elements;
  return label.toLowerCase().includes(wanted.label.value.trim().toLowerCase())
    && (wanted.status.value === "" || status === wanted.status.value)
    && (wanted.least.value === "" || (score !== "" && Number(score) >= Number(wanted.least.value)))
    && (wanted.most.value === "" || (score !== "" && Number(score) <= Number(wanted.most.value)));
}

function show() {
  for (const sample of samples) sample.hidden = !isWanted(sample.dataset);
  for (const group of document.querySelectorAll(".group")) group.hidden = !group.querySelector("li:not([hidden])");
  const count = samples.filter(sample => !sample.hidden).length;
  form.querySelector("output").value = `${count} of ${samples.length} samples`;
}

form.addEventListener("input", show);
form.addEventListener("reset", () => setTimeout(show));
form.addEventListener("submit", event => event.preventDefault());
form.hidden = false;
show();
