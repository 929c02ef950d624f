// node run.mjs CLIENT URL SAID: runs every case of a client, and says for each what went wrong, as one JSON object.
const [client, url] = process.argv.slice(2);
const { cases } = await import(`./${client}.mjs`);
const found = {};
for (const [name, run] of Object.entries(cases(url))) {
  try {
    await run();
    found[name] = null;
  } catch (error) {
    found[name] = error.stack;
  }
}
console.log(JSON.stringify(found));
