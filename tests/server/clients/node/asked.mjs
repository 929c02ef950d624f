// What the server of ../conftest.py is asked, and says.
export const { HELLO, ANIMAL } = JSON.parse(process.argv[4]);
export const CITIES = [{ city: "Lima" }, { city: "Cusco" }];
export const QUESTION = "Weather in Lima and Cusco?";
export const PICTURE =
  "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==";
export const CITY = {
  type: "object",
  properties: { city: { type: "string" } },
  required: ["city"],
  additionalProperties: false,
};
