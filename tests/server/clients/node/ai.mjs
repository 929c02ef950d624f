// The Vercel AI SDK, by both of its providers that speak OpenAI's APIs.
import assert from "node:assert/strict";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { APICallError, Output, embedMany, generateText, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";
import { ANIMAL, CITIES, HELLO, PICTURE, QUESTION } from "./asked.mjs";

const Animal = z.object({ kind: z.enum(["llama", "alpaca"]), age: z.int() });

export function cases(url) {
  const options = { baseURL: `${url}/v1`, apiKey: "none" };
  const compatible = createOpenAICompatible({
    ...options,
    name: "puna",
    includeUsage: true,
    supportsStructuredOutputs: true,
  });
  const openai = createOpenAI(options);
  const models = {
    compatible: (name) => compatible(name),
    chat: (name) => openai.chat(name),
    responses: (name) => openai.responses(name),
  };
  const found = Object.entries(models).flatMap(([name, model]) =>
    Object.entries(casesOf(model)).map(([title, run]) => [`${name} ${title}`, run]),
  );
  found.push([
    "embeddings",
    async () => {
      const made = await embedMany({ model: compatible.textEmbeddingModel("tiny"), values: ["a", "b"] });
      assert.equal(made.embeddings.length, 2);
    },
  ]);
  return Object.fromEntries(found);
}

function casesOf(named) {
  const model = named("tiny");
  const once = { model, temperature: 0, maxRetries: 0 };

  return {
    async chat() {
      const { text, usage, finishReason } = await generateText({ ...once, prompt: "Hi", system: "Be brief." });
      assert.equal(text, HELLO);
      assert.equal(finishReason, "stop");
      assert.ok(usage.inputTokens > 3 && usage.outputTokens > 3);
    },

    async stream() {
      const answer = streamText({ ...once, prompt: "Hi", onError: ({ error }) => { throw error; } });
      let text = "";
      for await (const piece of answer.textStream) text += piece;
      assert.equal(text, HELLO);
      assert.ok((await answer.usage).outputTokens > 3);
    },

    async tools() {
      for (const ask of [generateText, streamText]) {
        const asked = [];
        const weather = tool({
          description: "The weather of a city.",
          inputSchema: z.object({ city: z.string() }),
          execute: async (place) => (asked.push(place), "sunny"),
        });
        const answer = await ask({ ...once, prompt: QUESTION, tools: { weather }, stopWhen: stepCountIs(3) });
        assert.equal(await answer.text, "It is sunny there.");
        assert.deepEqual(asked, CITIES);
        assert.equal((await answer.steps).length, 2);
      }
    },

    async schema() {
      const output = Output.object({ schema: Animal });
      const { output: found } = await generateText({ ...once, prompt: "Show an animal.", output });
      assert.deepEqual(found, ANIMAL);
      const answer = streamText({ ...once, prompt: "Show an animal.", output });
      let last;
      for await (const piece of answer.partialOutputStream) last = piece;
      assert.deepEqual(last, ANIMAL);
    },

    async pictures() {
      const content = [{ type: "text", text: "What?" }, { type: "image", image: PICTURE }];
      const { text } = await generateText({ ...once, messages: [{ role: "user", content }] });
      assert.equal(text, "I see 1 pictures.");
    },

    async errors() {
      const refused = (status, said) => (error) => {
        assert.ok(APICallError.isInstance(error));
        assert.equal(error.statusCode, status);
        assert.match(error.message, said);
        return true;
      };
      const big = generateText({ ...once, model: named("big"), prompt: "Hi" });
      await assert.rejects(big, refused(404, /there is no model 'big'/));
      const long = generateText({ ...once, prompt: "word ".repeat(3000) });
      await assert.rejects(long, refused(400, /prompt is too long/));
    },
  };
}
