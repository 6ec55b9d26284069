"use strict";
// Runs in a report before anything else: changes every control, opens every section, and says what went wrong.
const faults = [];
addEventListener("error", (event) => faults.push("error: " + event.message));
addEventListener("unhandledrejection", (event) => faults.push("error: " + event.reason));
addEventListener("securitypolicyviolation", (event) => faults.push("policy: " + event.violatedDirective + " " + event.blockedURI));
addEventListener("click", (event) => event.target.download && event.preventDefault());
function look(when) {
  const root = document.documentElement;
  if (root.scrollWidth > innerWidth) faults.push(`${when}: ${root.scrollWidth} px wide in a window of ${innerWidth}`);
  for (const figure of document.querySelectorAll("figure[data-chart]")) {
    if (figure.clientWidth > 0 && !figure.querySelector("svg")) faults.push(`${when}: chart ${figure.dataset.chart} is empty`);
    const svg = figure.querySelector("svg");
    if (svg === null || figure.clientWidth === 0) continue;
    const frame = svg.getBoundingClientRect();
    for (const text of svg.querySelectorAll("text")) {
      const box = text.getBoundingClientRect();
      if (box.left < frame.left - 0.5 || box.right > frame.right + 0.5) faults.push(`${when}: ${text.textContent} is cut`);
    }
  }
}
addEventListener("load", () => {
  const found = { width: innerWidth, height: document.documentElement.scrollHeight, paper: getComputedStyle(document.body).backgroundColor };
  look("at first");
  for (const section of document.querySelectorAll("details")) section.open = true;
  setTimeout(() => {
    look("unfolded");
    const axis = document.getElementById("axis");
    for (const value of ["tokens", "seconds", "flops", "steps"]) {
      axis.value = value;
      axis.dispatchEvent(new Event("change"));
      look("along " + value);
    }
    document.getElementById("log").click();
    for (const button of document.querySelectorAll("#legend button")) { button.click(); look("without " + button.textContent); button.click(); }
    found.saved = [...document.querySelectorAll(".save a")].slice(0, 2).map((link) => { link.click(); return link.href; });
    for (const link of document.querySelectorAll("#contents a"))
      if (!document.getElementById(link.hash.slice(1))) faults.push("no section " + link.hash);
    found.backs = [...new Set([...document.querySelectorAll("figure, svg.graph rect")].map((part) => getComputedStyle(part).backgroundColor))];
    found.faults = faults;
    const place = document.createElement("pre");
    place.id = "probe";
    place.textContent = "PROBE" + encodeURIComponent(JSON.stringify(found)) + "END";
    document.body.append(place);
  }, 300);
});
